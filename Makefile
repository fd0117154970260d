# What to type; `make` alone lists it. Needs Go, nothing else: `make test` gets the rest itself.

# What xcaddy builds with, for everything here, so that all builds share compiled packages: no paths of
# this machine, and none of the databases that only Caddy's ACME server could use. A build does not
# depend on git either.
export GOFLAGS := $(GOFLAGS) -trimpath -buildvcs=false -tags=nobadger,nomysql,nopgx

# As xcaddy does, too; only the race detector needs C.
static := CGO_ENABLED=0

# Compiling takes what it takes, with empty caches on a busy machine half an hour, and a test has a time limit. So targets compile what the
# tests run, and the tests find it here. `go test` by hand, without the variable, compiles it itself.
bin := $(CURDIR)/bin
compiled := PORTGATE_COMPILED=$(bin)

# Systems without event loops, and processors with words of 32 bits.
systems := linux/386 darwin/arm64 windows/amd64

# One fuzz target runs this long.
FUZZTIME ?= 30s

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build run xcaddy cross test test-deps lint format test-unit test-tools test-integration test-bench bench fuzz clean \
	bin/caddy-race bin/caddy-xcaddy bin/bench bin/golangci-lint bin/collectors bin/browser

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/caddy
	$(static) go build -ldflags '-s -w' -o bin/caddy ./cmd/caddy

run: build ## build and start the quickstart: curl localhost:8080
	./bin/caddy run --adapter caddyfile --config examples/quickstart.Caddyfile

xcaddy: ## build bin/caddy from xcaddy.json, as an operator's xcaddy does
	cd tools && $(static) go run ./build -o $(bin)/caddy

cross: ## compile for the other systems and processors
	for system in $(systems); do \
		echo "cross: $$system" && \
		$(static) GOOS=$${system%/*} GOARCH=$${system#*/} go build ./cmd/... ./modules/... || exit 1; \
	done

# What the tests run. The go command knows what is up to date.
bin/caddy-race:
	CGO_ENABLED=1 go build -race -o $@ ./cmd/caddy

bin/caddy-xcaddy:
	cd tools && $(static) go run ./build -o $(bin)/caddy-xcaddy

bin/bench:
	cd integration/bench && $(static) go build -o $(bin)/bench .

bin/collectors:
	cd tools/collectors && $(static) go build -o $(bin)/otel ./otel && \
	$(static) go build -o $(bin)/victoria-logs github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs

# Packages of npm that the test of the status page needs, as their lock file has them. An installation of another state is replaced.
bin/browser:
	cmp -s integration/browser/package-lock.json $(bin)/browser/node_modules/.from || ( \
		mkdir -p $(bin)/browser && cp integration/browser/package.json integration/browser/package-lock.json $(bin)/browser/ && \
		npm ci --prefix $(bin)/browser --no-audit --no-fund --loglevel error && \
		cp integration/browser/package-lock.json $(bin)/browser/node_modules/.from )

bin/golangci-lint:
	cd tools && $(static) go build -o $(bin)/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

test: test-deps lint cross test-unit test-tools test-integration test-bench ## run every test, installing what they need

test-deps: ## install the Debian packages that the tests need
	./scripts/test-deps.sh

lint: bin/golangci-lint ## check style, import arrows and go.mod
	go mod tidy -diff
	cd integration/bench && go mod tidy -diff
	cd tools/collectors && go mod tidy -diff
	$(static) $(bin)/golangci-lint run ./...
	cd tools && $(static) $(bin)/golangci-lint run --config ../.golangci.yml ./...
	cd integration/bench && $(static) $(bin)/golangci-lint run --config ../../.golangci.yml ./...
	cd tools/collectors && $(static) $(bin)/golangci-lint run --config ../../.golangci.yml ./...

format: bin/golangci-lint ## rewrite the sources as lint wants them
	$(bin)/golangci-lint fmt ./...
	cd tools && $(bin)/golangci-lint fmt --config ../.golangci.yml ./...
	cd integration/bench && $(bin)/golangci-lint fmt --config ../../.golangci.yml ./...
	cd tools/collectors && $(bin)/golangci-lint fmt --config ../../.golangci.yml ./...

test-unit: test-deps ## run the packages' own tests with the race detector
	packages=$$(go list ./...) && \
	go test -race -timeout 20m $$(echo "$$packages" | grep -v '/integration')

# Not from the test cache, which does not see the binaries, and one package at a time, because they measure times. The limit is for
# a test that hangs: a machine that is busy with something else takes three times as long.
test-integration: test-deps build bin/caddy-race bin/collectors bin/browser ## run the tests on the real binary with real clients and servers
	$(compiled) go test -race -count=1 -p 1 -timeout 45m ./integration/...

test-tools: bin/caddy-xcaddy bin/golangci-lint ## check the build through xcaddy and the checkout as a whole
	cd tools && $(static) $(compiled) go test -count=1 -timeout 10m ./...

test-bench: test-deps build bin/bench ## check that the benchmark measures everything it should
	cd integration/bench && $(static) $(compiled) go test -count=1 -timeout 20m ./...

# For docs/performance.md: BENCHFLAGS='-markdown docs/performance.md -sweep docs/performance.png'.
bench: build bin/bench ## compare with HAProxy, nginx and caddy-l4, in about 9 minutes; BENCHFLAGS=-help
	./scripts/test-deps.sh haproxy libnginx-mod-stream nginx
	./bin/bench -caddy bin/caddy -json bin/bench.json -sweep bin/bench.png $(BENCHFLAGS)

fuzz: ## run each fuzz target for FUZZTIME (30s)
	go list ./... | while read -r package; do \
		go test -list '^Fuzz' "$$package" | grep '^Fuzz' | while read -r target; do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
		done || exit 1; \
	done

clean: ## remove what was built
	rm -rf bin
