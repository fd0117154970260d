package house

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/xcaddy"
	"golang.org/x/mod/modfile"
)

const (
	checkout       = "../.."
	portgateModule = "github.com/portgate/caddy-portgate"
	caddyModule    = "github.com/caddyserver/caddy/v2"
)

// TestPluginsAgree holds that the two ways to a Portgate binary have the same plugins in the same
// versions: `go build ./cmd/caddy`, which goes by portgate.go and go.mod, and xcaddy with
// xcaddy.json. That is so when
//
//   - xcaddy.json names Portgate itself, without a version (tools/build takes the checkout),
//   - the other plugins of xcaddy.json are the packages of other modules that portgate.go imports,
//     no more and no less,
//   - their versions, and Caddy's, are those of go.mod,
//   - cmd/caddy adds nothing to portgate.go but Caddy's standard modules, as xcaddy does.
func TestPluginsAgree(t *testing.T) {
	t.Parallel()
	recipe := readRecipe(t)
	required := readRequired(t)

	if got, want := recipe.CaddyVersion, required[caddyModule]; got != want {
		t.Errorf("xcaddy.json has caddy_version %q, go.mod has %q", got, want)
	}

	var inRecipe []string
	for _, plugin := range recipe.Plugins {
		inRecipe = append(inRecipe, plugin.PackagePath)
		if got, want := plugin.Version, required[plugin.PackagePath]; got != want {
			t.Errorf("xcaddy.json has version %q of %s, go.mod has %q", got, plugin.PackagePath, want)
		}
	}
	inCode := []string{portgateModule}
	for _, imported := range imports(t, "portgate.go") {
		if !inModule(imported, portgateModule) {
			inCode = append(inCode, imported)
		}
	}
	if !sameSet(inRecipe, inCode) {
		t.Errorf("xcaddy.json has the plugins %q, portgate.go brings %q", inRecipe, inCode)
	}

	want := []string{caddyModule + "/cmd", caddyModule + "/modules/standard", portgateModule}
	if got := imports(t, "cmd/caddy/main.go"); !sameSet(got, want) {
		t.Errorf("cmd/caddy imports %q, want %q: plugins belong into portgate.go", got, want)
	}
}

// TestPortgateBringsEveryModule holds that no package of this repository registers something with
// Caddy and is left out of portgate.go, directly or through another package.
func TestPortgateBringsEveryModule(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	cmd.Dir = checkout
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	brought := strings.Fields(string(out))
	registering := registeringPackages(t)
	for _, pkg := range registering {
		if !slices.Contains(brought, pkg) {
			t.Errorf("%s registers with Caddy, but portgate.go does not import it", pkg)
		}
	}
	if len(registering) == 0 {
		t.Error("found no package that registers with Caddy: the search is broken")
	}
}

// registeringPackages finds the packages whose source calls one of Caddy's registration functions.
func registeringPackages(t *testing.T) []string {
	t.Helper()
	var packages []string
	walk := func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if name == "tools" || name == "testdata" || strings.HasPrefix(name, ".") && name != ".." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if callsRegister(parsed) {
			folder, err := filepath.Rel(checkout, filepath.Dir(file))
			packages = append(packages, path.Join(portgateModule, filepath.ToSlash(folder)))
			return err
		}
		return nil
	}
	if err := filepath.WalkDir(checkout, walk); err != nil {
		t.Fatal(err)
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

func callsRegister(file *ast.File) bool {
	found := false
	ast.Inspect(file, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return !found
		}
		function, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return !found
		}
		switch function.Sel.Name {
		case "RegisterModule", "RegisterNetwork", "RegisterCommand", "RegisterAdapter":
			from, ok := function.X.(*ast.Ident)
			found = found || ok && strings.HasPrefix(from.Name, "caddy")
		}
		return !found
	})
	return found
}

func readRecipe(t *testing.T) (recipe xcaddy.Builder) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(checkout, "xcaddy.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &recipe); err != nil {
		t.Fatal(err)
	}
	return recipe
}

// readRequired returns the versions of go.mod's direct requirements by module.
func readRequired(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(checkout, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := modfile.Parse("go.mod", data, nil)
	if err != nil {
		t.Fatal(err)
	}
	required := make(map[string]string)
	for _, require := range file.Require {
		if !require.Indirect {
			required[require.Mod.Path] = require.Mod.Version
		}
	}
	return required
}

func imports(t *testing.T, file string) (paths []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(checkout, file), nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, imported)
	}
	return paths
}

func inModule(pkg, module string) bool { return pkg == module || strings.HasPrefix(pkg, module+"/") }

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
