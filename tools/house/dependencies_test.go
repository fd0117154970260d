package house

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDependenciesAreExplained holds that CONTRIBUTING.md's table has a row for every module that
// go.mod requires directly, and none for a module that it does not.
func TestDependenciesAreExplained(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(checkout, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	explained := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+\\.[^`]+/[^`]+)` \\|").FindAllStringSubmatch(string(data), -1) {
		explained[row[1]] = true
	}
	required := readRequired(t)
	for module := range required {
		if !explained[module] {
			t.Errorf("go.mod requires %s, CONTRIBUTING.md does not say why", module)
		}
	}
	for module := range explained {
		if _, ok := required[module]; !ok {
			t.Errorf("CONTRIBUTING.md explains %s, go.mod does not require it", module)
		}
	}
}
