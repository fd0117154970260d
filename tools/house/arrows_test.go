package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// arrow is one import in a tree that is otherwise empty.
type arrow struct {
	from, to string // folders of this repository, or a module of somebody else
	list     string // the depguard list that has to refuse it; empty: allowed
}

var arrows = []arrow{
	{"cmd/caddy", "", ""},
	{"cmd/caddy", "modules/forward", "binary"},
	{"", "modules/forward", ""},
	{"", "modules/network", ""},

	{"caddyfile", caddyModule, ""},
	{"caddyfile", "modules/network", "ground"},
	{"caddyfile/yaml", "caddyfile", ""},
	{"caddyfile/yaml", "modules/acl", "ground"},
	{"modules/internal/session", "modules/internal/state", ""},
	{"modules/internal/session", "modules/admin", "ground"},
	{"modules/internal/state", "", "ground"},

	{"modules/forward", "caddyfile", ""},
	{"modules/forward", "modules/internal/session", ""},
	{"modules/forward", "modules/forward/relay", ""},
	{"modules/forward", caddyModule, ""},
	{"modules/forward", "modules/network", "forward"},
	{"modules/network", "modules/forward/relay", "network"},
	{"modules/acl", "modules/acl/ipset", ""},
	{"modules/acl", "modules/ratelimit", "acl"},
	{"modules/ratelimit", "modules/acl/ipset", "ratelimit"},
	{"modules/admin", "modules/forward/upstream", "admin"},

	{"modules/forward/relay", caddyModule, "leaf-relay"},
	{"modules/forward/relay", "modules/internal/session", "leaf-relay"},
	{"modules/forward/relay", "caddyfile", "leaf-relay"},
	{"modules/forward/upstream", caddyL4Module, "leaf-upstream"},
	{"modules/acl/ipset", "caddyfile", "leaf-ipset"},
	{"modules/ratelimit/bucket", "modules/internal/state", "leaf-bucket"},
	{"modules/admin/page", caddyModule, "leaf-page"},
	{"modules/admin/page", "modules/internal/adminapi", "leaf-page"},
	{"modules/ratelimit/bucket/redis", "modules/ratelimit/bucket", ""},
	{"modules/ratelimit/bucket/redis", caddyModule, "leaf-bucket"},
	{"modules/logging", "modules/logging/bulk", ""},
	{"modules/logging/bulk", "modules/logging/delivery", ""},
	{"modules/logging/delivery", "modules/internal/logqueue", "leaf-logging"},
	{"modules/logging/fluent", caddyModule, "leaf-logging"},
}

const caddyL4Module = "github.com/mholt/caddy-l4"

// TestLintRefusesForbiddenImports runs golangci-lint with this repository's settings over a tree
// that has one small file per arrow and looks at which of them depguard refuses.
func TestLintRefusesForbiddenImports(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	for i, arrow := range arrows {
		writeArrow(t, tree, i, arrow)
	}
	write(t, tree, "go.mod", "module "+portgateModule+"\n\ngo 1.26\n\n"+
		"require (\n\t"+caddyModule+" v2.0.0\n\t"+caddyL4Module+" v0.0.0\n)\n\n"+
		"replace (\n\t"+caddyModule+" => ./stubs/caddy\n\t"+caddyL4Module+" => ./stubs/l4\n)\n")
	write(t, tree, "stubs/caddy/go.mod", "module "+caddyModule+"\n")
	write(t, tree, "stubs/caddy/caddy.go", "package caddy\n")
	write(t, tree, "stubs/l4/go.mod", "module "+caddyL4Module+"\n")
	write(t, tree, "stubs/l4/l4.go", "package l4\n")

	refused := lint(t, tree)
	for i, arrow := range arrows {
		lists := refused[arrowFile(i, arrow)]
		switch {
		case arrow.list == "" && lists != nil:
			t.Errorf("%q imports %q: refused by %q, want it allowed", arrow.from, arrow.to, lists)
		case arrow.list != "" && !slices.Contains(lists, arrow.list):
			t.Errorf("%q imports %q: refused by %q, want %q", arrow.from, arrow.to, lists, arrow.list)
		}
	}
}

// TestEveryModuleHasARule holds that a new folder under modules/ does not go unguarded.
func TestEveryModuleHasARule(t *testing.T) {
	t.Parallel()
	settings, err := os.ReadFile(filepath.Join(checkout, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	folders, err := os.ReadDir(filepath.Join(checkout, "modules"))
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		pattern := `"**/modules/` + folder.Name() + `/**"`
		if folder.IsDir() && !strings.Contains(string(settings), pattern) {
			t.Errorf(".golangci.yml has no depguard rule for %s", pattern)
		}
	}
}

// writeArrow makes both ends of the import exist. Every arrow starts from a package of its own below
// the folder, so that no two arrows form a cycle.
func writeArrow(t *testing.T, tree string, i int, arrow arrow) {
	t.Helper()
	target := arrow.to
	if target != caddyModule && target != caddyL4Module {
		write(t, tree, filepath.Join(target, "target.go"), "package target\n")
		target = strings.TrimSuffix(portgateModule+"/"+target, "/")
	}
	write(t, tree, arrowFile(i, arrow), "package arrow_test\n\nimport _ \""+target+"\"\n")
}

func arrowFile(i int, arrow arrow) string {
	return filepath.Join(arrow.from, "arrow"+strconv.Itoa(i), "arrow.go")
}

func write(t *testing.T, tree, name, content string) {
	t.Helper()
	path := filepath.Join(tree, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lint runs depguard alone and returns the names of the lists that refused something, by file.
func lint(t *testing.T, tree string) map[string][]string {
	t.Helper()
	settings, err := filepath.Abs(filepath.Join(checkout, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), golangciLint(t), "run", "--config", settings,
		"--allow-parallel-runners", "--enable-only", "depguard", "--path-mode", "abs", "--output.json.path", "stdout", "--show-stats=false")
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "GOLANGCI_LINT_CACHE="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1: it found something
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	var report struct {
		Issues []struct {
			Text string
			Pos  struct{ Filename string }
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v: %v in\n%s\n%s", cmd, err, out, &stderr)
	}
	refused := make(map[string][]string)
	for _, issue := range report.Issues {
		list := listName.FindStringSubmatch(issue.Text)
		file, err := filepath.Rel(tree, issue.Pos.Filename)
		if list == nil || err != nil {
			t.Fatalf("unexpected issue %q in %s", issue.Text, issue.Pos.Filename)
		}
		refused[file] = append(refused[file], list[1])
	}
	return refused
}

var listName = regexp.MustCompile(`is not allowed from list '([^']+)'`)

// golangciLint returns the program in the version that tools/go.mod pins. `make test-tools` has compiled it before the tests' time limit
// began; `go test` by hand builds it here.
func golangciLint(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("PORTGATE_COMPILED"); dir != "" {
		return filepath.Join(dir, "golangci-lint")
	}
	out, err := exec.CommandContext(t.Context(), "go", "tool", "-n", "golangci-lint").Output()
	if err != nil {
		t.Fatalf("go tool -n golangci-lint: %v", err)
	}
	return strings.TrimSpace(string(out))
}
