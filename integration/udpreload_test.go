package integration

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// sources is a set of the upstream sockets that an upstream has got datagrams from.
type sources struct {
	mu   sync.Mutex
	seen map[netip.AddrPort]bool
}

// echo is an upstream's.
func (s *sources) echo(from netip.AddrPort, b []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = make(map[netip.AddrPort]bool)
	}
	s.seen[from] = true
	return b
}

func (s *sources) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// Handlers of several listeners may be written alike. Their sessions go on over reloads all the same, whichever of them is provisioned
// first.
func TestReloadsKeepUDPSessionsOfListenersThatAreAlike(t *testing.T) {
	t.Parallel()
	const listeners, reloads = 5, 5
	var seen sources
	forward := gate.Forward("udp/" + serveUDP(t, seen.echo))
	addrs := make([]string, listeners)
	var servers []gate.Server
	for i := range addrs {
		addrs[i] = gate.ReserveAddr(t)
		servers = append(servers, gate.ListenUDP(addrs[i], forward))
	}
	p := gate.Start(t, gate.Layer4(servers...))
	var clients []*net.UDPConn
	for round := range reloads {
		for _, addr := range addrs {
			clients = append(clients, dialUDP(t, addr))
		}
		for _, client := range clients {
			mustExchange(t, client)
		}
		if n := seen.count(); n != len(clients) {
			t.Fatalf("%d upstream sockets for %d clients after %d reloads", n, len(clients), round)
		}
		p.Load(gate.Layer4(servers...))
	}
}

// A reload changes no session whose forward stays the same.
func TestReloadsKeepUpstreamSocketsOfUDPSessions(t *testing.T) {
	t.Parallel()
	const (
		sessions, reloads = 50, 10
		perSecond         = 500 // of all sessions
		between           = 250 * time.Millisecond
	)
	addr, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
	var seen sources
	forward := gate.Forward("udp/"+serveUDP(t, seen.echo)).With("idle_timeout", "30s")
	config := gate.Layer4(gate.ListenUDP(addr, forward))
	more := gate.Layer4(gate.ListenUDP(other, forward), gate.ListenUDP(addr, forward)).
		WithApp("portgate", gate.JSON{"udp_max_sessions": 20})
	p := gate.Start(t, config)
	askers := make([]*asker, sessions)
	for i := range askers {
		askers[i] = startAsking(dialUDP(t, addr), sessions*time.Second/perSecond)
	}
	tick := time.NewTicker(between)
	defer tick.Stop()
	for i := range reloads {
		<-tick.C
		p.Load([]gate.JSON{more, config, config}[i%3])
	}
	<-tick.C
	sent, lost, refused := 0, 0, 0
	for _, a := range askers {
		n, took := a.finish(t)
		sent, lost = sent+n, lost+n-len(took)
		refused += a.refused
	}
	if want := int(perSecond*reloads*between.Seconds()) / 2; sent < want { // a busy machine leaves some out
		t.Errorf("%d datagrams were sent during the reloads, want at least %d", sent, want)
	}
	if lost > 0 || refused > 0 {
		t.Errorf("%d of %d datagrams are lost, and the port was closed %d times", lost, sent, refused)
	}
	if n := seen.count(); n != sessions {
		t.Errorf("%d upstream sockets for %d sessions through %d reloads", n, sessions, reloads)
	}
	if ended := p.Sessions(); len(ended) > 0 {
		t.Errorf("a session has ended: %s", ended[0].Line)
	}
}

func TestReloadGivesUDPSessionsToTheNewConfig(t *testing.T) {
	t.Parallel()
	a, b := gate.Forward(serveUDP(t, tellUDP("a"))), gate.Forward(serveUDP(t, tellUDP("b")))
	start := func(t *testing.T) (p *gate.Process, addr string, client *net.UDPConn, source string) {
		addr = gate.ReserveAddr(t)
		p = gate.Start(t, gate.Layer4(gate.ListenUDP(addr, a)))
		client = dialUDP(t, addr)
		return p, addr, client, mustAsk(t, client, "a")
	}
	mustHaveDrained := func(t *testing.T, p *gate.Process, client *net.UDPConn) {
		t.Helper()
		if s := p.WaitSession(port(client)); s.Reason != "drain" || s.Status != 200 || s.DatagramsUp != 1 || s.DatagramsDown != 1 {
			t.Errorf("access log: %s", s.Line)
		}
	}
	t.Run("another upstream", func(t *testing.T) {
		t.Parallel()
		p, addr, client, _ := start(t)
		p.Load(gate.Layer4(gate.ListenUDP(addr, b)))
		mustHaveDrained(t, p, client)
		mustAsk(t, client, "b")
	})
	t.Run("another option", func(t *testing.T) {
		t.Parallel()
		p, addr, client, source := start(t)
		p.Load(gate.Layer4(gate.ListenUDP(addr, a.With("idle_timeout", "61s"))))
		mustHaveDrained(t, p, client)
		if now := mustAsk(t, client, "a"); now == source {
			t.Errorf("the upstream socket is still %s", now)
		}
	})
	t.Run("another handler", func(t *testing.T) {
		t.Parallel()
		p, addr, client, _ := start(t)
		p.Load(gate.Layer4(gate.ListenUDP(addr, gate.JSON{"handler": "echo"})))
		mustHaveDrained(t, p, client)
		mustExchange(t, client)
	})
	t.Run("no listener, and then again", func(t *testing.T) {
		t.Parallel()
		p, addr, client, _ := start(t)
		p.Load(gate.Layer4())
		mustHaveDrained(t, p, client)
		if _, _, err := ask(client, "message"); !isRefused(err) {
			t.Errorf("got %v, want the refusal of a port that is closed", err)
		}
		p.Load(gate.Layer4(gate.ListenUDP(addr, a)))
		mustAsk(t, client, "a")
	})
	t.Run("another upstream of another listener", func(t *testing.T) {
		t.Parallel()
		p, addr, client, source := start(t)
		other := gate.ReserveAddr(t)
		p.Load(gate.Layer4(gate.ListenUDP(addr, a), gate.ListenUDP(other, a)))
		otherClient := dialUDP(t, other)
		mustAsk(t, otherClient, "a")
		p.Load(gate.Layer4(gate.ListenUDP(addr, a), gate.ListenUDP(other, b)))
		mustHaveDrained(t, p, otherClient)
		mustAsk(t, otherClient, "b")
		if now := mustAsk(t, client, "a"); now != source {
			t.Errorf("the upstream socket is %s, was %s", now, source)
		}
	})
}

// A config that is rejected gets no datagram, and ends no session.
func TestRejectedConfigTouchesNoUDPSession(t *testing.T) {
	t.Parallel()
	const rejections = 20
	addr := gate.ReserveAddr(t)
	var good, bad sources
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(serveUDP(t, good.echo))))
	p := gate.Start(t, config)
	session := startAsking(dialUDP(t, addr), 10*time.Millisecond)
	gate.Eventually(t, peerTimeout, func() error {
		if good.count() != 1 {
			return errors.New("no session yet")
		}
		return nil
	})
	p.Load(config)
	before := p.Baseline()

	// One server with two addresses: the first is open when the second fails.
	rejected := gate.ListenUDP(addr, gate.Forward(serveUDP(t, bad.echo)))
	rejected.Listen = append(rejected.Listen, "gate+udp/"+takeUDPPort(t))
	const clients = 100
	for i := range rejections {
		if err := p.TryLoad(gate.Layer4(rejected)); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("config %d: got %v, want a rejection that says which address is taken", i, err)
		}
		for range clients / rejections {
			mustExchange(t, dialUDP(t, addr))
		}
	}
	sent, took := session.finish(t)
	if len(took) < sent || good.count() != 1+clients || bad.count() > 0 {
		t.Errorf("%d of %d datagrams of a session are lost; %d upstream sockets to the running config's upstream, want %d; %d to the rejected one's",
			sent-len(took), sent, good.count(), 1+clients, bad.count())
	}
	if ended := p.Sessions(); len(ended) > 0 {
		t.Errorf("a session has ended: %s", ended[0].Line)
	}
	p.Load(gate.Layer4()) // ends them all
	p.Load(config)
	mustExchange(t, session.conn)
	before.MustReturn(t, peerTimeout)
}

// takeUDPPort is gate.TakePort for UDP.
func takeUDPPort(t testing.TB) string { return listenUDP(t, "127.0.0.1:0").LocalAddr().String() }

func TestReloadsLeaveNothingOfUDPSessions(t *testing.T) {
	t.Parallel()
	const reloads, sessions = 50, 200
	addr := gate.ReserveAddr(t)
	var seen sources
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(serveUDP(t, seen.echo))))
	p := gate.Start(t, config)
	mustExchange(t, dialUDP(t, addr))
	p.Load(config)
	before := p.Baseline()

	clients := make([]*net.UDPConn, sessions)
	for i := range clients {
		clients[i] = dialUDP(t, addr)
		mustExchange(t, clients[i])
	}
	during := p.Baseline()
	for range reloads {
		p.Load(config)
		for _, client := range clients[:sessions/10] {
			mustExchange(t, client)
		}
	}
	for _, client := range clients {
		mustExchange(t, client)
	}
	during.MustReturn(t, peerTimeout)
	if n := seen.count(); n != 1+sessions {
		t.Errorf("%d upstream sockets, want %d", n, 1+sessions)
	}
	p.Load(gate.Layer4())
	p.Load(config)
	p.WaitSessions(1+sessions, func(s gate.Session) bool { return s.Reason == "drain" && s.Status == 200 })
	mustExchange(t, dialUDP(t, addr))
	before.MustReturn(t, peerTimeout)
	if active := p.Metrics().Sum("caddy_portgate_sessions_active"); active != 1 {
		t.Errorf("%v sessions are counted as active, want 1", active)
	}
}
