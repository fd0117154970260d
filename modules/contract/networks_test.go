package contract

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

func init() {
	caddy.RegisterNetwork("made-up", func(context.Context, string, string, string, uint, net.ListenConfig) (any, error) {
		return nil, errors.New("nothing is listened on here")
	})
}

// Every network that Caddy can listen on, or that some plugin may have registered, can be listened on with every handler. What can't
// be a descriptor is refused.
func TestHandlersOnEveryNetwork(t *testing.T) {
	addresses := []string{
		":7000", "tcp/127.0.0.1:7000-7002", "tcp4/:7000", "tcp6/:7000", "udp/:7000", "udp4/:7000", "udp6/[::1]:7000",
		"unix//run/s", "unix//run/s|0222", "unix/@s", "unixpacket//run/s", "unixgram//run/s", "unix+h2c//run/s",
		"ip:icmp/127.0.0.1", "ip4/127.0.0.1", "ip6/::1", "fd/3", "fd/99999", "fd/x", "fd/", "fdgram/3", "fdgram/",
		"made-up/nowhere", "made-up/nowhere:7", "made-up/",
	}
	for _, n := range gate.Networks {
		if n.Inherited {
			addresses = append(addresses, n.Name+"/3", n.Name+"/99999", n.Name+"/x")
			continue
		}
		addresses = append(addresses, n.Name+"/:7000", n.Name+"/localhost:7000-7002")
	}
	for _, address := range addresses {
		addr, err := caddy.ParseNetworkAddress(address)
		if err != nil {
			t.Fatal(err)
		}
		to, rate := "192.0.2.1:9", "1000/s"
		if gate.Datagrams(addr.Network) {
			to = "udp/" + to
		}
		if addr.PortRangeSize() > 1 {
			to += "-11"
		}
		for _, handler := range []string{
			`{"handler":"acl","rules":[{"deny":["192.0.2.0/24"]}]}`,
			fmt.Sprintf(`{"handler":"rate_limit","connections":[{"rate":%q}]}`, rate),
			fmt.Sprintf(`{"handler":"forward","to":[%q]}`, to),
			`{"handler":"accept_proxy","from":["192.0.2.0/24"]}`,
		} {
			t.Run(address+" "+handler, func(t *testing.T) {
				var config caddy.Config
				must(t, caddy.StrictUnmarshalJSON(fmt.Appendf(nil, `{"admin":{"disabled":true},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}},
					"apps":{"layer4":{"servers":{"s":{"listen":[%q],"routes":[{"handle":[%s]}]}}}}}`, address, handler), &config))
				err := caddy.Validate(&config)
				_, refused := gate.Unknown(addr.Network)
				if strings.Contains(addr.Network, "fd") {
					_, noNumber := strconv.Atoi(addr.Host)
					refused = refused || noNumber != nil
				}
				if (err != nil) != refused {
					t.Errorf("%v, want an error: %t", err, refused)
				}
			})
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
