package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// What a program appends to a file that it keeps open is in force at once, for living sessions too, however long it goes on. What
// of the file is not taken as it is written is in the log and in the list's condition.
func TestACLFileThatGrows(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "list", "127.0.1.9/30\n127.0.1.1\n127.0.1.2\nfoo bar\n")
	p, addr := startACL(t, acl("deny file "+path))
	mustLetIn(t, addr, false, "127.0.1.1", "127.0.1.8", "127.0.1.11")
	mustLetIn(t, addr, true, "127.0.1.12", "127.0.0.2")
	living, err := dialFrom("127.0.0.2", addr)
	must(t, err)
	defer living.Close()
	must(t, exchange(living))

	writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer writer.Close()
	for n := 2; n < 20; n++ {
		client := fmt.Sprintf("127.0.0.%d", n)
		_, err := fmt.Fprintln(writer, client)
		must(t, err)
		start := time.Now()
		gate.Eventually(t, peerTimeout, func() error {
			if got, err := letIn(client, addr); got || err != nil {
				return fmt.Errorf("%s is let in: %t (%v)", client, got, err)
			}
			return nil
		})
		if took := time.Since(start); took > time.Second+tolerance {
			t.Errorf("%s was denied after %v, want at most %v", client, took, time.Second+tolerance)
		}
	}
	if _, err := living.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the session of a client that was appended goes on: %v", err)
	}
	_, port, _ := net.SplitHostPort(living.LocalAddr().String())
	if s := p.WaitSessions(1, func(s gate.Session) bool { return fmt.Sprint(s.ClientPort) == port }); s[0].Reason != "list_changed" {
		t.Errorf("it ended with %s", s[0].Reason)
	}
	lists := p.MustGet("/portgate/lists")
	for _, want := range []string{`"name":"file ` + path + `"`, `"bad_lines":1`, `"first_bad_line":"line 4: \"foo bar\": `, `"masked_lines":1`, `"first_masked_line":"line 1: `} {
		if !strings.Contains(lists, want) {
			t.Errorf("%s\nhas no %s", lists, want)
		}
	}
	for _, want := range []string{"list has prefixes with bits set behind their length", "list has bad lines, which are left out"} {
		said := 0
		for line := range strings.Lines(p.Output()) {
			if strings.Contains(line, want) && strings.Contains(line, `"level":"warn"`) {
				said++
			}
		}
		if said != 1 {
			t.Errorf("the log says %d times %q, want once", said, want)
		}
	}
}
