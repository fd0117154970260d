package integration

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// After sessions have ended in every way that there is, the process holds what it held before.
func TestNothingIsLeftOfSessionsHoweverTheyEnd(t *testing.T) {
	t.Parallel()
	const each = 30
	onEachNetwork(t, func(t *testing.T, network string) {
		upstream, accepted := accepting(t)
		addrs := make(map[string]string)
		var servers []gate.Server
		listen := func(name string, handlers ...gate.JSON) {
			addrs[name] = gate.ReserveAddr(t)
			servers = append(servers, gate.Listen(network+"/"+addrs[name], handlers...))
		}
		listen("plain", gate.Forward(upstream))
		listen("idle", gate.Forward(upstream).With("idle_timeout", "1s"))
		listen("lifetime", gate.Forward(upstream).With("max_lifetime", "1s"))
		listen("drain", gate.Forward(upstream).With("drain_timeout", "1s"))
		listen("refused", gate.Forward(gate.ReserveAddr(t)))
		listen("tls", gate.JSON{"handler": "tls"}, gate.Forward(upstream))
		config, trust := withTLS(t, gate.Layer4(servers...))
		p := gate.Start(t, config)
		ways := waysToEnd(t, addrs, accepted, trust)
		const ends = 10 // that have a session; the others fail in the tls handler
		ways()          // what is made once and kept is made
		p.Load(config)
		p.WaitSessions(ends, nil)
		before := p.Baseline()

		for range each {
			ways()
		}
		p.Load(config)
		p.WaitSessions(ends+each*ends, nil)
		before.MustReturn(t, peerTimeout)
		if active := p.Metrics().Sum("caddy_portgate_sessions_active"); active != 0 {
			t.Errorf("%v sessions are counted as active", active)
		}
	})
}

// waysToEnd returns a function that opens sessions and ends some of them; the others are left to the limits. Both ends
// of a session are closed here, or see its end.
func waysToEnd(t *testing.T, addrs map[string]string, accepted <-chan *net.TCPConn, trust *tls.Config) func() {
	open := func(name string) (client, upstream *net.TCPConn) {
		client, upstream = pair(t, addrs[name], accepted)
		mustExchangeBetween(t, client, upstream)
		return client, upstream
	}
	return func() {
		client, upstream := open("plain") // ends in order
		client.CloseWrite()
		upstream.Close()
		io.Copy(io.Discard, client)

		client, upstream = open("plain")
		reset(client)
		mustReset(t, upstream)

		client, upstream = open("plain")
		reset(upstream)
		mustReset(t, client)

		client, upstream = open("plain") // both at once, with data on the way
		client.Write(make([]byte, mib))
		reset(client)
		reset(upstream)

		client, upstream = open("plain") // in the middle of a stream
		sent := sendForever(client)
		if _, err := io.CopyN(io.Discard, upstream, 4*mib); err != nil {
			t.Fatal(err)
		}
		reset(upstream)
		within(t, peerTimeout, "the sender's end", sent)

		if refused, err := net.Dial("tcp", addrs["refused"]); err == nil {
			mustReset(t, refused)
			refused.Close()
		}

		garbage := dial(t, addrs["tls"]) // no handshake
		io.WriteString(garbage, "no ClientHello\n")
		io.Copy(io.Discard, garbage)

		secure := tls.Client(dial(t, addrs["tls"]), trust)
		must(t, secure.Handshake())
		upstream = within(t, peerTimeout, "the upstream's accept", accepted)
		mustExchangeBetween(t, secure, upstream)
		secure.Close()
		io.Copy(io.Discard, upstream)
		upstream.Close()

		open("idle")
		open("lifetime")
		open("drain") // with the next load
	}
}
