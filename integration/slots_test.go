package integration

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A slot of `concurrent` comes back however a session ends: by each limit of forward on TCP and UDP, by a ban, because it makes room for
// another session, and because a reload takes its listener away.
func TestSlotsComeBackHoweverSessionsEnd(t *testing.T) {
	t.Parallel()
	const client = "127.0.0.9"
	tcp, udp := gate.Forward(serve(t, echo)), gate.Forward(serveDatagrams(t))
	ways := []struct {
		network, reason string
		handlers        []gate.JSON // after the limit
	}{
		{"gate+tcp", "idle_timeout", []gate.JSON{tcp.With("idle_timeout", "300ms")}},
		{"gate+tcp", "max_lifetime", []gate.JSON{tcp.With("max_lifetime", "300ms")}},
		{"gate+tcp", "list_changed", []gate.JSON{acl("deny list slots"), tcp}},
		{"tcp", "idle_timeout", []gate.JSON{tcp.With("idle_timeout", "300ms")}},
		{"tcp", "max_lifetime", []gate.JSON{tcp.With("max_lifetime", "300ms")}},
		{"tcp", "list_changed", []gate.JSON{acl("deny list slots"), tcp}},
		{"gate+udp", "idle_timeout", []gate.JSON{udp.With("idle_timeout", "300ms")}},
		{"gate+udp", "max_lifetime", []gate.JSON{udp.With("max_lifetime", "300ms")}},
		{"gate+udp", "max_replies", []gate.JSON{udp.With("max_replies", 1)}},
		{"gate+udp", "list_changed", []gate.JSON{acl("deny list slots"), udp}},
		{"gate+udp", "evicted", []gate.JSON{gate.Forward(listenUDP(t, "127.0.0.1:0").LocalAddr().String())}}, // which does not answer
		{"gate+udp", "drain", []gate.JSON{udp}},
		{"udp", "idle_timeout", []gate.JSON{udp.With("idle_timeout", "300ms")}},
		{"udp", "max_lifetime", []gate.JSON{udp.With("max_lifetime", "300ms")}},
		{"udp", "max_replies", []gate.JSON{udp.With("max_replies", 1)}},
	}
	addrs := make([]string, len(ways))
	var servers []gate.Server
	for i, way := range ways {
		addrs[i] = gate.ReserveAddr(t)
		limit := rateLimit(`{"concurrent": [{"max": 1}]}`).With("name", addrs[i])
		servers = append(servers, gate.Listen(way.network+"/"+addrs[i], append([]gate.JSON{limit}, way.handlers...)...))
	}
	config := func(servers []gate.Server) gate.JSON {
		return gate.Layer4(servers...).WithApp("portgate", gate.JSON{"udp_max_sessions_per_client": 1})
	}
	p := gate.Start(t, config(servers))
	conns := make([]net.Conn, len(ways))
	var kept []gate.Server // by the reload
	for i, way := range ways {
		conns[i] = dialAs(t, client, way.network, addrs[i])
		_, err := io.WriteString(conns[i], "hello")
		must(t, err)
		if way.reason == "evicted" {
			gate.Eventually(t, peerTimeout, func() error {
				return equal(p.Metrics(), "caddy_portgate_sessions_active", 1, label("listener", addrs[i]))
			})
			_, err := io.WriteString(dialAs(t, client, way.network, addrs[i]), "make room")
			must(t, err)
		} else {
			_, err := io.ReadFull(conns[i], make([]byte, len("hello")))
			must(t, err)
		}
		if way.reason != "drain" {
			kept = append(kept, servers[i])
		}
	}
	ban(t, p, "slots", client, `{"ttl":"1h"}`)
	ended := func(reload bool) {
		for i, way := range ways {
			if (way.reason == "drain") != reload {
				continue
			}
			if s := p.WaitSession(port(conns[i])); s.Reason != way.reason {
				t.Errorf("%s %s: %s", way.network, way.reason, s.Line)
			}
		}
	}
	ended(false)
	p.Load(config(kept))
	ended(true)
	gate.Eventually(t, peerTimeout, func() error {
		m := p.Metrics()
		return errors.Join(equal(m, "caddy_portgate_ratelimit_keys", 0), equal(m, "caddy_portgate_sessions_active", 0))
	})
}

// dialAs connects to a listener of the network from a client's address.
func dialAs(t testing.TB, client, network, addr string) net.Conn {
	t.Helper()
	if network == "gate+udp" || network == "udp" {
		return dialUDPFrom(t, client, addr)
	}
	conn, err := dialFrom(client, addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}
