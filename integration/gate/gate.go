// Package gate starts the real binary and looks at it from outside, as an operator would: through its admin endpoint, its
// log, its exit code and /proc.
//
// There are two flavours of the binary: Race, the default, with the race detector; Plain without it, for tests that state a load or a time.
// `make test-integration` compiles them before the tests' time limit begins. Where `go test` is called by hand, each is built
// at most once per test run into a temporary directory, which Main removes. Start gives every process a home directory of
// its own, an admin endpoint on a unix socket and a log file, waits until the process answers, and registers the check that ends every test:
// the process stops on SIGTERM with exit code 0 and has reported no data race and no panic.
//
// Ports are reserved, not guessed: ReservePort binds a socket that never listens and keeps it for the whole test. The kernel gives such a
// port to nobody else, neither to a listener nor as a client's port, yet lets the process listen on it because both
// sides set SO_REUSEADDR (which Go and every server that the tests use do). A reserved port on which nobody listens refuses connections.
//
// Nothing in here sleeps to let something happen: Eventually waits for a condition and fails with what was last seen.
package gate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// command is the package that is built and tested.
const command = "github.com/portgate/caddy-portgate/cmd/caddy"

// Compiled names the environment variable with the folder in which the make targets put what tests run.
const Compiled = "PORTGATE_COMPILED"

// Flavour is a way to build the binary.
type Flavour int

const (
	// Race reports data races on stderr and makes the process exit with code 66; it costs 5 to 10 times the CPU.
	Race Flavour = iota
	// Plain is what an operator runs.
	Plain
)

var (
	buildDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "portgate-") })
	binaries = map[Flavour]func() (string, error){
		Race: sync.OnceValues(func() (string, error) { return build("caddy-race", "1", "-race") }),
		// Without C, as operators get it.
		Plain: sync.OnceValues(func() (string, error) { return build("caddy", "0") }),
	}
)

// Binary returns the path of the binary. Without PORTGATE_COMPILED the first call builds it.
func Binary(tb testing.TB, flavour Flavour) string {
	tb.Helper()
	path, err := binaries[flavour]()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func build(name, cgo string, flags ...string) (string, error) {
	if dir := os.Getenv(Compiled); dir != "" {
		return filepath.Join(dir, name), nil
	}
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, command)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args, err, out)
	}
	return path, nil
}

// Main runs the tests and removes the binaries. TestMain passes its result to os.Exit.
func Main(m *testing.M) int {
	defer func() {
		if dir, err := buildDir(); err == nil {
			os.RemoveAll(dir)
		}
	}()
	return m.Run()
}

// Eventually fails the test when check still returns an error after timeout; the error says what is missing.
func Eventually(tb testing.TB, timeout time.Duration, check func() error) {
	tb.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.Now().Add(timeout)
	var early error // what was wrong before the time-outs of the product itself changed what is seen
	for {
		err := check()
		if err == nil {
			return
		}
		if left := time.Until(deadline); left < 0 {
			tb.Fatalf("not within %v: %v (at half of it: %v)", timeout, err, early)
		} else if left > timeout/2 {
			early = err
		}
		<-poll.C
	}
}
