package forward

import (
	"net"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func TestIsAStepWithoutPlaceholdersOfConnections(t *testing.T) {
	for _, c := range []struct {
		to   []string
		want bool
	}{
		{[]string{"127.0.0.1:9000"}, true},
		{[]string{"127.0.0.1:9000", "[::1]:9000", "unix//run/s"}, true},
		{[]string{"{env.PORTGATE_TEST_HOST}:9000"}, true},
		{[]string{"localhost:9000"}, true},
		{[]string{":9000"}, true},
		{[]string{"127.0.0.1:9000", "localhost:9000", "name.invalid:9000"}, true},
		{[]string{"{l4.tls.server_name}:9000"}, false},
	} {
		host := newHost()
		mustLoad(t, object{"s": server(to(c.to), host+":9000")})
		steps, _ := fastpath.Steps(caddy.ActiveContext(), "tcp", host+":9000")
		if got := len(steps) == 1; got != c.want {
			t.Errorf("%q: got %d steps, want one: %v", c.to, len(steps), c.want)
		}
	}
}

// The connection is no [relay.Detacher], so its session takes goroutines, and Serve returns all the same.
func TestServeDoesNotWaitForTheSession(t *testing.T) {
	h := forwardTo(t, echo(t))
	client, accepted := connect(t)
	arrival := session.Arrival{
		Conn: accepted, Network: "tcp", Listener: "test:serve", Client: client.LocalAddr().(*net.TCPAddr).AddrPort(),
	}
	if h.Serve(&arrival) {
		t.Error("the next handler would be called")
	}
	exchange(t, client, "hello")
	entry := finish(t, client)
	if entry.Listener != "test:serve" || entry.Status != session.StatusDone {
		t.Errorf("got %+v", entry)
	}
}
