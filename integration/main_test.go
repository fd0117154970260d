// Package integration tests the real binary with real clients and servers: one file per theme, one test per thing that is
// promised. Package gate starts the processes and looks at them; peers_test.go has the two ends of a connection.
//
// Tests that load the machine or hold the binary to a time run one after the other, with the plain binary. The others run in parallel, nearly all of them against
// the binary with the race detector. What a test needs from the system (root, priorities before all others, nft, sshd, PostgreSQL, ...) is a failure when it is missing:
// a skipped test would hide a hole.
package integration

import (
	"flag"
	"os"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The parallel tests wait for timeouts far more than they compute, so more of them run at once than there are cores.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8")
	}
	os.Exit(gate.Main(m))
}
