package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// forMake are the packages of scripts/test-deps.sh that no test runs, but make, the go command and the browser.
var forMake = []string{"make", "gcc", "libc6-dev", "ca-certificates", "fonts-dejavu-core"}

// TestProgramsAreInstalled holds that scripts/test-deps.sh installs every program that a test runs, and none that no test runs.
func TestProgramsAreInstalled(t *testing.T) {
	t.Parallel()
	wanted := readWanted(t)
	run := make(map[string]token.Position) // where, by program
	var source strings.Builder             // of all tests
	for _, file := range testFiles(t) {
		source.WriteString(file.text)
		ast.Inspect(file.ast, func(node ast.Node) bool {
			if name := programOf(node); name != "" {
				run[path.Base(name)] = file.position(node)
			}
			return true
		})
	}
	if len(run) < 10 {
		t.Fatalf("found only %v: the search is broken", run)
	}
	installed := []string{"go", "sh", "exe"} // exe: the test itself, by /proc/self/exe
	for _, commands := range wanted {
		for _, command := range commands {
			installed = append(installed, path.Base(command))
		}
	}
	for program, where := range run {
		if !slices.Contains(installed, program) {
			t.Errorf("%v runs %q, which scripts/test-deps.sh does not name", where, program)
		}
	}
	for pkg, commands := range wanted {
		for _, command := range commands {
			// A program may be named in a list or a config, too.
			used := regexp.MustCompile(`\b` + regexp.QuoteMeta(path.Base(command)) + `\b`).MatchString(source.String())
			if !used && !slices.Contains(forMake, pkg) {
				t.Errorf("scripts/test-deps.sh installs %q for %q, which no test runs", pkg, command)
			}
		}
	}
}

// readWanted returns what scripts/test-deps.sh looks for, by package.
func readWanted(t *testing.T) map[string][]string {
	t.Helper()
	script, err := os.ReadFile(filepath.Join(checkout, "scripts", "test-deps.sh"))
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(script), "\nwanted='")
	list, _, _ = strings.Cut(list, "'")
	wanted := make(map[string][]string)
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) > 1 {
			wanted[fields[0]] = fields[1:]
		}
	}
	return wanted
}

// TestNoTestCompilesUnderALimit holds that a test which calls the go command for more than a question, or xcaddy, does so only where no
// make target has compiled the thing before: go test's -timeout counts everything that a test does.
func TestNoTestCompilesUnderALimit(t *testing.T) {
	t.Parallel()
	found := 0
	for _, file := range testFiles(t) {
		for _, decl := range file.ast.Decls {
			if compile := find(decl, compiles); compile != nil {
				found++
				if looks := find(decl, looksForCompiled); looks == nil || looks.Pos() > compile.Pos() {
					t.Errorf("%v compiles without a look at PORTGATE_COMPILED before: compile it in a make target", file.position(compile))
				}
			}
		}
	}
	if found < 4 { // in gate, in bench, and two in tools
		t.Errorf("found only %d tests that compile: the search is broken", found)
	}
}

// TestMakeCompilesBeforeItTests holds that make passes the place of what it has compiled to the tests that look for it.
func TestMakeCompilesBeforeItTests(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(checkout, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	tests := regexp.MustCompile(`(?m)^\t.*\bgo test .*-timeout.*$`).FindAllString(string(makefile), -1)
	if len(tests) != 4 {
		t.Errorf("the Makefile has %d calls of go test, want those of test-unit, test-integration, test-tools and test-bench:\n%s", len(tests), strings.Join(tests, "\n"))
	}
	for _, call := range tests {
		if unit := strings.Contains(call, "grep -v '/integration'"); !unit && !strings.Contains(call, "$(compiled)") {
			t.Errorf("the Makefile has %q, want $(compiled) before go test", call)
		}
	}
	for _, file := range testFiles(t) {
		if strings.HasPrefix(file.name, "modules/") && find(file.ast, looksForCompiled) != nil {
			t.Errorf("%s looks for what is compiled, and make test-unit compiles nothing", file.name)
		}
	}
}

type testFile struct {
	name string // in the checkout
	text string
	ast  *ast.File
	set  *token.FileSet
}

func (f testFile) position(node ast.Node) token.Position { return f.set.Position(node.Pos()) }

// testFiles returns the sources of the tests, with what only tests use: all of integration/.
func testFiles(t *testing.T) (files []testFile) {
	t.Helper()
	err := filepath.WalkDir(checkout, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(checkout, file)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && name != "." {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, "_test.go") && !(strings.HasPrefix(name, "integration/") && strings.HasSuffix(name, ".go")) {
			return nil
		}
		// Not this file, which speaks of all that it looks for.
		if name == "tools/house/programs_test.go" {
			return nil
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
		files = append(files, testFile{name, string(text), parsed, set})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// find returns the first node for which match is true.
func find(root ast.Node, match func(ast.Node) bool) (found ast.Node) {
	ast.Inspect(root, func(node ast.Node) bool {
		if found == nil && node != nil && match(node) {
			found = node
		}
		return found == nil
	})
	return found
}

// compiles reports whether the node calls the go command for more than a question, or the build of an xcaddy recipe.
func compiles(node ast.Node) bool {
	name, args := call(node)
	if name == "Build" && len(args) == 2 { // of a context, to a file
		return true
	}
	if programOf(node) != "go" {
		return false
	}
	for i, arg := range args {
		if literal(arg) == "go" {
			question := i+1 < len(args) && slices.Contains([]string{"env", "list", "version"}, literal(args[i+1]))
			return !question
		}
	}
	return false
}

// looksForCompiled reports whether the node reads the environment variable, by its name or by gate.Compiled.
func looksForCompiled(node ast.Node) bool {
	name, args := call(node)
	if name != "Getenv" || len(args) != 1 {
		return false
	}
	constant, _ := args[0].(*ast.Ident)
	return literal(args[0]) == "PORTGATE_COMPILED" || constant != nil && constant.Name == "Compiled"
}

// programOf returns the program that a call runs or looks for, if it is written there.
func programOf(node ast.Node) string {
	name, args := call(node)
	switch {
	case (name == "Command" || name == "LookPath") && len(args) > 0:
		return literal(args[0])
	case (name == "CommandContext" || name == "program") && len(args) > 1:
		return literal(args[1])
	}
	return ""
}

// call returns the name of the called function without its package, and the arguments; nothing for other nodes.
func call(node ast.Node) (name string, args []ast.Expr) {
	expr, ok := node.(*ast.CallExpr)
	if !ok {
		return "", nil
	}
	switch function := expr.Fun.(type) {
	case *ast.Ident:
		return function.Name, expr.Args
	case *ast.SelectorExpr:
		return function.Sel.Name, expr.Args
	}
	return "", nil
}

// literal returns a string that is written as such, or as the last part of filepath.Join.
func literal(expr ast.Expr) string {
	if name, args := call(expr); name == "Join" && len(args) > 0 {
		return literal(args[len(args)-1])
	}
	lit, ok := expr.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	value, _ := strconv.Unquote(lit.Value)
	return value
}
