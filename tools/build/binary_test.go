package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/xcaddy"
)

// checkout is where the tests find the repository.
const checkout = "../.."

// TestBinary looks at the binary that xcaddy.json describes.
func TestBinary(t *testing.T) {
	caddy := buildBinary(t)

	t.Run("has the modules", func(t *testing.T) {
		listed := strings.Fields(string(run(t, caddy, "list-modules")))
		for _, want := range []string{"layer4", "layer4.handlers.proxy", "layer4.handlers.forward"} {
			if !slices.Contains(listed, want) {
				t.Errorf("list-modules does not name %s", want)
			}
		}
	})
	t.Run("adapts the examples to their JSON", func(t *testing.T) {
		caddyfiles, err := filepath.Glob(filepath.Join(checkout, "examples", "*.Caddyfile"))
		if err != nil || len(caddyfiles) == 0 {
			t.Fatalf("no examples (%v)", err)
		}
		for _, caddyfile := range caddyfiles {
			file := strings.TrimSuffix(caddyfile, ".Caddyfile") + ".json"
			written, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // not every example is shown in both forms
			}
			if err != nil {
				t.Fatal(err)
			}
			adapted := run(t, caddy, "adapt", "--adapter", "caddyfile", "--config", caddyfile)
			if !reflect.DeepEqual(decode(t, adapted), decode(t, written)) {
				t.Errorf("caddy adapt makes\n%s\nof %s; %s is\n%s", adapted, caddyfile, file, written)
			}
		}
	})
}

// buildBinary returns the binary that `make test-tools` has built before the tests' time limit began. `go test` by hand builds it here,
// into a temporary folder. What the build prints is shown only when it fails.
func buildBinary(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("PORTGATE_COMPILED"); dir != "" {
		return filepath.Join(dir, "caddy-xcaddy")
	}
	if testing.Short() {
		t.Skip("compiles all of Caddy")
	}
	recipe, err := ReadRecipe(checkout)
	if err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	recipe.OnStep = func(step *xcaddy.StepEvent) error {
		_, err := io.Copy(&printed, step.Output)
		return err
	}
	caddy := filepath.Join(t.TempDir(), "caddy")
	if err := recipe.Build(t.Context(), caddy); err != nil {
		t.Fatalf("%v\n%s", err, &printed)
	}
	return caddy
}

// run returns what the program writes to its standard output. The program's home is a temporary
// folder, so that Caddy leaves nothing behind.
func run(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	return out
}

func decode(t *testing.T, data []byte) (value any) {
	t.Helper()
	if err := json.Unmarshal(data, &value); err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	return value
}
