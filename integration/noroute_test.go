package integration

import (
	"io"
	"net"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A connection that no route takes has an entry, whatever became of it: the matchers have seen enough, or too little for too long,
// the last handler passes it on, over TCP and UDP, with and without a layer4 connection.
func TestConnectionsThatNoRouteTakes(t *testing.T) {
	t.Parallel()
	upstream := serve(t, echo)
	matched := func(addr string) gate.Server {
		s := gate.Listen(addr, gate.Forward(upstream))
		s.Routes[0].Match = []gate.JSON{{"ssh": gate.JSON{}}}
		s.MatchingTimeout = "500ms"
		return s
	}
	acl := gate.JSON{"handler": "acl", "rules": []gate.JSON{{"deny": []string{"192.0.2.1"}}}}
	tcp, passed, datagrams := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	stock, site := gate.ReserveAddr(t), gate.ReserveAddr(t)
	other := gate.Listen(stock, gate.JSON{"handler": "proxy", "upstreams": []gate.JSON{{"dial": []string{upstream}}}})
	config := gate.Layer4(matched(tcp), gate.Listen(passed, acl), matched("gate+udp/"+datagrams), other).
		WithApp("http", gate.JSON{"servers": gate.JSON{"s": gate.JSON{"listen": []string{"gate+tcp/" + site}}}})
	p := gate.Start(t, config)
	mustEntry := func(conn net.Conn, network, listener string, read int64) {
		t.Helper()
		s := p.WaitSession(port(conn))
		if s.Status != 404 || s.Reason != "no_route" || s.Network != network || s.Listener != listener || s.ClientIP != "127.0.0.1" || s.BytesUp != read || s.Upstream != "" {
			t.Errorf("%s: %s", listener, s.Line)
		}
	}

	garbage := dial(t, tcp)
	mustWrite(t, garbage, "GET / HTTP/1.1\r\n\r\n")
	_, _ = io.Copy(io.Discard, garbage)
	mustEntry(garbage, "tcp", tcp, 18)
	silent := dial(t, tcp)
	_, _ = io.Copy(io.Discard, silent)
	mustEntry(silent, "tcp", tcp, 0)
	through := dial(t, passed)
	_, _ = io.Copy(io.Discard, through)
	mustEntry(through, "tcp", passed, 0)
	client := dialUDP(t, datagrams)
	mustWrite(t, client, "no ssh at all")
	s := p.WaitSessions(1, func(s gate.Session) bool { return s.Listener == datagrams })[0]
	if s.Status != 404 || s.Reason != "no_route" || s.Network != "udp" || s.BytesUp != 13 {
		t.Errorf("datagram: %s", s.Line)
	}

	// Others have served these.
	must(t, oneRequest(stock))
	dial(t, site).Close()
	ssh := dial(t, tcp)
	mustWrite(t, ssh, "SSH-2.0-test\r\n")
	mustRead(t, ssh, "SSH-2.0-test\r\n")
	ssh.Close()
	if s := p.WaitSession(port(ssh)); s.Status != 200 {
		t.Errorf("%s", s.Line)
	}
	for _, s := range p.Sessions() {
		if s.Listener == stock || s.Listener == site {
			t.Errorf("another module has served it: %s", s.Line)
		}
	}
	must(t, equal(p.Metrics(), "caddy_portgate_sessions_total", 4, label("status", "404")))
}
