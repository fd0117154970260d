package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadRecipe(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		content string
		want    string // part of the error, empty for none
	}{
		"complete": {
			content: `{"caddy_version": "v2.11.9", "plugins": [{"module_path": "github.com/portgate/caddy-portgate"}]}`,
		},
		"misspelt field": {
			content: `{"caddyversion": "v2.11.9"}`,
			want:    `unknown field "caddyversion"`,
		},
		"without Portgate": {
			content: `{"caddy_version": "v2.11.9", "plugins": [{"module_path": "github.com/mholt/caddy-l4"}]}`,
			want:    `plugins: expected "github.com/portgate/caddy-portgate" among them`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkout := t.TempDir()
			if err := os.WriteFile(filepath.Join(checkout, "xcaddy.json"), []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			recipe, err := ReadRecipe(checkout)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error is %v, want one with %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := recipe.Plugins[0].String(); got != portgateModule+"@v0.0.0" {
				t.Errorf("plugin is %q, want a version that go get accepts for a replaced module", got)
			}
			if len(recipe.Replacements) != 1 || recipe.Replacements[0].New.String() != checkout {
				t.Errorf("replacements are %v, want Portgate from %s", recipe.Replacements, checkout)
			}
		})
	}
}
