package house

import (
	"go/ast"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// TestWaitsAreForABusyMachine holds that what waits for a condition in integration/ has either a bound that no machine reaches, such as
// peerTimeout, or one that is named after what is promised. A wait ends when there is what it waits for, so that a long bound costs nothing; a
// few seconds, written where somebody waits, are a test that is red on a busy machine.
func TestWaitsAreForABusyMachine(t *testing.T) {
	t.Parallel()
	const least = 30 // seconds
	found := 0
	for _, file := range testFiles(t) {
		if !strings.HasPrefix(file.name, "integration/") || strings.HasPrefix(file.name, "integration/bench/") {
			continue
		}
		ast.Inspect(file.ast, func(node ast.Node) bool {
			name, args := call(node)
			switch name {
			case "Eventually", "within", "MustReturn", "Wait":
			default:
				return true
			}
			found++
			for _, arg := range args {
				if seconds, ok := literalSeconds(arg); ok && seconds < least {
					t.Errorf("%v waits for at most %d seconds: take peerTimeout, or say in a constant what promises them", file.position(node), seconds)
				}
			}
			return true
		})
	}
	if found < 100 {
		t.Errorf("found only %d waits: the search is broken", found)
	}
}

// literalSeconds returns n of an expression n*time.Second.
func literalSeconds(expr ast.Expr) (n int, ok bool) {
	product, ok := expr.(*ast.BinaryExpr)
	if !ok || product.Op != token.MUL {
		return 0, false
	}
	number, ok := product.X.(*ast.BasicLit)
	unit, isUnit := product.Y.(*ast.SelectorExpr)
	if !ok || !isUnit || unit.Sel.Name != "Second" {
		return 0, false
	}
	n, err := strconv.Atoi(number.Value)
	return n, err == nil
}
