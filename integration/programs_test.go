package integration

import (
	"os/exec"
	"testing"
)

// program finds a program of the system. `make test` installs them all.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: this test needs the program; `make test` installs it", err)
	}
	return path
}
