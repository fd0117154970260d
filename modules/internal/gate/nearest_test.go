package gate

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// What is called unknown by its name alone is what Caddy can't listen on.
func TestUnknownToCaddy(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"ip/127.0.0.1", "ip4/127.0.0.1", "ip4:icmp/127.0.0.1", "ip6:58/::1", "unix+h2c/@gate", "unixes/@gate", "fds/3", "tcp5/:0", "udp44/:0", "gate+x/:0",
	} {
		addr, err := caddy.ParseNetworkAddress(address)
		if err != nil {
			t.Fatal(err)
		}
		if _, unknown := Unknown(addr.Network); !unknown {
			t.Errorf("%s: known", address)
		}
		ln, err := addr.Listen(context.Background(), 0, net.ListenConfig{})
		if err == nil {
			t.Errorf("%s: Caddy listens: %T", address, ln)
		}
	}
	for _, network := range append([]string{"tailscale", "tailscale+tls", "made-up", "ipfs", "i2p", "sctp"}, stock...) {
		if expected, unknown := Unknown(network); unknown {
			t.Errorf("%s: expected %s", network, expected)
		}
	}
	for _, n := range Networks {
		if _, unknown := Unknown(n.Name); unknown || strings.Contains(n.Name, "unix") {
			t.Errorf("%s", n.Name)
		}
	}
}
