# What to type; `make` alone lists it. Needs Go, nothing else: `make test` gets the rest itself.

# What xcaddy builds with, for everything here, so that all builds share compiled packages: no paths of
# this machine, and none of the databases that only Caddy's ACME server could use. A build does not
# depend on git either.
export GOFLAGS := $(GOFLAGS) -trimpath -buildvcs=false -tags=nobadger,nomysql,nopgx

# As xcaddy does, too; only the race detector needs C.
static := CGO_ENABLED=0

# One fuzz target runs this long.
FUZZTIME ?= 30s

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build run xcaddy test test-deps lint format test-unit test-tools test-integration test-bench bench fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/caddy
	$(static) go build -ldflags '-s -w' -o bin/caddy ./cmd/caddy

run: build ## build and start the quickstart: curl localhost:8080
	./bin/caddy run --adapter caddyfile --config examples/quickstart.Caddyfile

xcaddy: ## build bin/caddy from xcaddy.json, as an operator's xcaddy does
	cd tools && $(static) go run ./build -o ../bin/caddy

test: test-deps lint test-unit test-tools test-integration test-bench ## run every test, installing what they need

test-deps: ## install the Debian packages that the tests need
	./scripts/test-deps.sh

lint: ## check style, import arrows and go.mod
	go mod tidy -diff
	cd integration/bench && go mod tidy -diff
	lint=$$(cd tools && $(static) go tool -n golangci-lint) && \
	export $(static) && \
	$$lint run ./... && \
	(cd tools && $$lint run --config ../.golangci.yml ./...) && \
	cd integration/bench && $$lint run --config ../../.golangci.yml ./...

format: ## rewrite the sources as lint wants them
	lint=$$(cd tools && $(static) go tool -n golangci-lint) && \
	$$lint fmt ./... && \
	(cd tools && $$lint fmt --config ../.golangci.yml ./...) && \
	cd integration/bench && $$lint fmt --config ../../.golangci.yml ./...

test-unit: ## run the packages' own tests with the race detector
	packages=$$(go list ./...) && \
	go test -race -timeout 10m $$(echo "$$packages" | grep -v '/integration')

# Not from the test cache, which does not see what a test builds, and one package at a time, because
# they measure times.
test-integration: test-deps ## run the tests on the real binary with real clients and servers
	go test -race -count=1 -p 1 -timeout 20m ./integration/...

test-tools: ## build through xcaddy and check the checkout as a whole
	cd tools && $(static) go test -count=1 -timeout 10m ./...

test-bench: test-deps ## check that the benchmark measures everything it should
	cd integration/bench && $(static) go test -count=1 -timeout 10m ./...

# For docs/performance.md: BENCHFLAGS='-markdown docs/performance.md -sweep docs/performance.png'.
bench: build ## compare with HAProxy, nginx and caddy-l4, in about 9 minutes; BENCHFLAGS=-help
	./scripts/test-deps.sh haproxy libnginx-mod-stream nginx
	cd integration/bench && $(static) go build -o ../../bin/bench .
	./bin/bench -caddy bin/caddy -json bin/bench.json -sweep bin/bench.png $(BENCHFLAGS)

fuzz: ## run each fuzz target for FUZZTIME (30s)
	go list ./... | while read -r package; do \
		go test -list '^Fuzz' "$$package" | grep '^Fuzz' | while read -r target; do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
		done || exit 1; \
	done

clean: ## remove what was built
	rm -rf bin
