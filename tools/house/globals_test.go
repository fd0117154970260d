package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestGlobals holds that CONTRIBUTING.md names every package-level variable of modules/ that changes, and no other.
func TestGlobals(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(checkout, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## What changes while the process runs")
	section, _, _ = strings.Cut(section, "\n## ")
	named := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+): ([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		for name := range strings.SplitSeq(row[2], ", ") {
			named[row[1]+": "+name] = true
		}
	}
	found := globals(t, filepath.Join(checkout, "modules"))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if !named[name] {
			t.Errorf("%s changes, and CONTRIBUTING.md does not say why it is a global", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if !found[name] {
			t.Errorf("CONTRIBUTING.md names %s, which is no global or does not change", name)
		}
	}
}

// globals returns the package-level variables below dir that change, as "folder: name".
func globals(t *testing.T, dir string) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	folders := make(map[string][]*ast.File)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		folders[filepath.Dir(path)] = append(folders[filepath.Dir(path)], file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for folder, files := range folders {
		written := make(map[string]bool)
		for _, file := range files {
			ast.Inspect(file, func(n ast.Node) bool { noteWrites(n, written); return true })
		}
		name, _ := filepath.Rel(dir, folder)
		for _, file := range files {
			for variable, spec := range variables(file) {
				if variable != "_" && (written[variable] || holdsState(spec)) {
					found[filepath.ToSlash(name)+": "+variable] = true
				}
			}
		}
	}
	return found
}

// variables returns the package-level variables of a file.
func variables(file *ast.File) map[string]*ast.ValueSpec {
	all := make(map[string]*ast.ValueSpec)
	for _, decl := range file.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.VAR {
			continue
		}
		for _, spec := range group.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				all[name.Name] = spec.(*ast.ValueSpec)
			}
		}
	}
	return all
}

// holdsState tells of a declaration whether its type or its value is made to be changed: what is locked, atomic, pooled, a pointer,
// a channel or a metric.
func holdsState(spec *ast.ValueSpec) (holds bool) {
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.StarExpr, *ast.ChanType:
			holds = true
		case *ast.UnaryExpr:
			holds = holds || n.Op == token.AND
		case *ast.CallExpr:
			if made, ok := n.Fun.(*ast.Ident); ok && (made.Name == "new" || strings.HasPrefix(made.Name, "new")) {
				holds = true
			}
		case *ast.SelectorExpr:
			if pkg, ok := n.X.(*ast.Ident); ok && slices.Contains([]string{"sync", "atomic", "state", "meter"}, pkg.Name) {
				holds = true
			}
		}
		return true
	}
	if spec.Type != nil {
		ast.Inspect(spec.Type, look)
	}
	for _, value := range spec.Values {
		ast.Inspect(value, look)
	}
	return holds
}

// noteWrites notes the names of what is assigned to, in whole or in part. A local variable of the same name as a global one counts
// too, which is reason enough to rename it. What := declares does not.
func noteWrites(n ast.Node, written map[string]bool) {
	note := func(e ast.Expr) {
		for {
			switch inner := e.(type) {
			case *ast.IndexExpr:
				e = inner.X
			case *ast.SelectorExpr:
				e = inner.X
			case *ast.Ident:
				written[inner.Name] = true
				return
			default:
				return
			}
		}
	}
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			for _, left := range n.Lhs {
				note(left)
			}
		}
	case *ast.IncDecStmt:
		note(n.X)
	case *ast.CallExpr:
		if called, ok := n.Fun.(*ast.Ident); ok && called.Name == "delete" {
			note(n.Args[0])
		}
	}
}
