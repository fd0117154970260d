package integration

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// onEachDatagramNetwork runs the test on gate+udp, which has event loops, and on the stock network, which has goroutines.
func onEachDatagramNetwork(t *testing.T, test func(t *testing.T, network string)) {
	t.Helper()
	for _, network := range []string{"gate+udp", "udp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			test(t, network)
		})
	}
}

// startDatagrams forwards with these options to an upstream that the test reads and writes.
func startDatagrams(t testing.TB, network string, options gate.JSON) (p *gate.Process, addr string, upstream *net.UDPConn) {
	t.Helper()
	addr, upstream = gate.ReserveAddr(t), listenUDP(t, "127.0.0.1:0")
	forward := gate.Forward(upstream.LocalAddr().String())
	for name, value := range options {
		forward = forward.With(name, value)
	}
	return gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, forward))), addr, upstream
}

// sendUp sends a datagram to the upstream, and returns the upstream socket that it came from.
func sendUp(t testing.TB, size int, client, upstream *net.UDPConn) (from netip.AddrPort) {
	t.Helper()
	return mustArriveWhole(t, size, client.Write, upstream)
}

// sendDown sends n datagrams of so many bytes; they must arrive.
func sendDown(t testing.TB, n, size int, upstream *net.UDPConn, to netip.AddrPort, client *net.UDPConn) {
	t.Helper()
	for range n {
		mustArriveWhole(t, size, func(b []byte) (int, error) { return upstream.WriteToUDPAddrPort(b, to) }, client)
	}
}

// sendInVain sends datagrams that must not arrive.
func sendInVain(t testing.TB, n, size int, upstream *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	for range n {
		b, _ := payload(size)
		_, err := upstream.WriteToUDPAddrPort(b, to)
		if err != nil && !isRefused(err) {
			t.Fatal(err)
		}
	}
}

func TestUDPIdleTimeout(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second // longer than a busy machine keeps anybody from sending
	cases := map[string]struct{ up, down bool }{
		"nothing after the first datagram":     {},
		"datagrams from the client delay it":   {up: true},
		"datagrams from the upstream delay it": {down: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onEachDatagramNetwork(t, func(t *testing.T, network string) {
				p, addr, upstream := startDatagrams(t, network, gate.JSON{"idle_timeout": limit.String()})
				client := dialUDP(t, addr)
				from := sendUp(t, 10, client, upstream)
				tick := time.NewTicker(limit / 8)
				defer tick.Stop()
				for start := time.Now(); (c.up || c.down) && time.Since(start) < 2*limit; <-tick.C {
					if c.up && sendUp(t, 10, client, upstream) != from {
						t.Fatal("a datagram came from another upstream socket")
					}
					if c.down {
						sendDown(t, 1, 10, upstream, from, client)
					}
				}
				last := time.Now()
				s := p.WaitSession(port(client))
				if took := time.Since(last); s.Reason != "idle_timeout" || s.Status != 200 || took < limit/2 || took > limit+tolerance {
					t.Errorf("ended %v after the last datagram, want %v to %v: %s", took, limit, limit+tolerance, s.Line)
				}
				if again := sendUp(t, 10, client, upstream); again == from {
					t.Errorf("the next session has the same upstream socket, %v", again)
				}
			})
		})
	}
}

func TestUDPMaxLifetimeEndsABusySession(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	onEachDatagramNetwork(t, func(t *testing.T, network string) {
		var seen sources
		addr := gate.ReserveAddr(t)
		p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(serveUDP(t, seen.echo)).With("max_lifetime", limit.String()))))
		start := time.Now()
		busy := startAsking(dialUDP(t, addr), limit/50)
		gate.Eventually(t, peerTimeout, func() error {
			if n := seen.count(); n < 2 {
				return fmt.Errorf("%d upstream sockets", n)
			}
			return nil
		})
		if took := time.Since(start); took < limit || took > limit+tolerance {
			t.Errorf("the session has lasted for %v, want %v to %v", took, limit, limit+tolerance)
		}
		busy.finish(t)
		if s := p.WaitSession(port(busy.conn)); s.Reason != "max_lifetime" || s.Status != 200 || s.Duration > (limit+tolerance).Seconds() {
			t.Errorf("access log: %s", s.Line)
		}
	})
}

func TestMaxRepliesEndsASession(t *testing.T) {
	t.Parallel()
	onEachDatagramNetwork(t, func(t *testing.T, network string) {
		for _, replies := range []int{1, 3} {
			t.Run(fmt.Sprint(replies), func(t *testing.T) {
				t.Parallel()
				p, addr, upstream := startDatagrams(t, network, gate.JSON{"max_replies": replies})
				client := dialUDP(t, addr)
				first := sendUp(t, 10, client, upstream)
				sendDown(t, replies, 20, upstream, first, client)
				s := p.WaitSession(port(client))
				if s.Reason != "max_replies" || s.Status != 200 || s.DatagramsUp != 1 || s.DatagramsDown != int64(replies) || s.BytesDown != int64(20*replies) {
					t.Errorf("access log: %s", s.Line)
				}
				sendInVain(t, 1, 20, upstream, first)
				if again := sendUp(t, 10, client, upstream); again == first {
					t.Errorf("the next session has the same upstream socket, %v", again)
				}
				mustBeSilent(t, client, 50*time.Millisecond)
			})
		}
	})
}

// Nobody can make the process send to somebody else more than so many times what it was sent, under that one's address.
func TestMaxReplyRatioBoundsWhatAnUnprovenClientGets(t *testing.T) {
	t.Parallel()
	p, addr, upstream := startDatagrams(t, "gate+udp", gate.JSON{"max_reply_ratio": 2.5})
	client := dialUDP(t, addr)
	from := sendUp(t, 100, client, upstream)
	sendInVain(t, 1, 251, upstream, from)
	sendDown(t, 2, 100, upstream, from, client)
	sendDown(t, 1, 50, upstream, from, client)
	sendInVain(t, 5, 1, upstream, from)
	mustBeSilent(t, client, 50*time.Millisecond)
	dropped := func(want int) {
		t.Helper()
		must(t, equal(p.Metrics(), "caddy_portgate_datagrams_dropped_total", want, label("listener", addr), label("reason", "reply_ratio")))
	}
	dropped(6)
	sendUp(t, 0, client, upstream) // it receives
	sendDown(t, 20, 1000, upstream, from, client)
	dropped(6)

	// A client that never gets a reply has sent all it is asked for.
	unproven := dialUDP(t, addr)
	var other netip.AddrPort
	for range 3 {
		other = sendUp(t, 100, unproven, upstream)
	}
	sendDown(t, 3, 250, upstream, other, unproven)
	sendInVain(t, 1, 1, upstream, other)
	mustBeSilent(t, unproven, 50*time.Millisecond)
	dropped(7)
	p.Load(gate.Layer4())
	if s := p.WaitSession(port(client)); s.DatagramsUp != 2 || s.DatagramsDown != 23 || s.BytesUp != 100 || s.BytesDown != 250+20_000 {
		t.Errorf("access log: %s", s.Line)
	}
}

// What an upstream can't take while it is away is lost, and nothing else.
func TestRepliesResumeWhenTheUpstreamIsBack(t *testing.T) {
	t.Parallel()
	const within = peerTimeout // 2 s on a machine that is not busy
	onEachDatagramNetwork(t, func(t *testing.T, network string) {
		addr, upstreamAddr := gate.ReserveAddr(t), gate.ReserveAddr(t)
		var seen sources
		upstream := listenUDP(t, upstreamAddr)
		ended := answerUDP(t, upstream, seen.echo)
		p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(upstreamAddr))))
		client := dialUDP(t, addr)
		mustExchange(t, client)
		upstream.Close()
		<-ended
		sendUntilAway(t, p, addr, network, client)
		back := time.Now()
		answerUDP(t, listenUDP(t, upstreamAddr), seen.echo)
		mustResume(t, client, back, within)
		if sessions := p.Sessions(); len(sessions) > 0 {
			t.Errorf("a session has ended: %s", sessions[0].Line)
		}
	})
}

// sendUntilAway sends for a second, during which the upstream refuses all.
func sendUntilAway(t testing.TB, p *gate.Process, addr, network string, client *net.UDPConn) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	const datagrams = 50
	for range datagrams {
		if _, err := client.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	if network != "gate+udp" {
		return // what the stock network gets is not counted
	}
	dropped := p.Metrics().Sum("caddy_portgate_datagrams_dropped_total", label("listener", addr), label("reason", "upstream_refused"))
	if dropped < datagrams/2 || dropped > datagrams {
		t.Errorf("%v of %d datagrams are counted as refused by the upstream", dropped, datagrams)
	}
}

// mustResume sends until there is an answer.
func mustResume(t testing.TB, client *net.UDPConn, since time.Time, within time.Duration) {
	t.Helper()
	a := startAsking(client, 20*time.Millisecond)
	gate.Eventually(t, within-time.Since(since), func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.took) == 0 {
			return fmt.Errorf("no answer to %d datagrams", len(a.sent))
		}
		return nil
	})
	t.Logf("answered %v after the upstream was back", time.Since(since))
	if sent, took := a.finish(t); len(took) == 0 || sent == 0 {
		t.Errorf("%d of %d datagrams were answered", len(took), sent)
	}
}

// An upstream that is given by name is looked up again when it has moved.
func TestUpstreamThatHasMovedIsFound(t *testing.T) {
	t.Parallel()
	const within = peerTimeout // 2 s on a machine that is not busy
	number := gate.ReservePort(t)
	addr := gate.ReserveAddr(t)
	var at atomic.Value
	at.Store(netip.MustParseAddr("127.0.0.1"))
	names := withNameServer(t, func(_ netip.AddrPort, query []byte) []byte { return addressOf(query, at.Load().(netip.Addr)) })
	old := listenUDP(t, gate.Loopback(number))
	ended := answerUDP(t, old, echoUDP)
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward(fmt.Sprintf("%s:%d", hostName, number)))), names)
	client := dialUDP(t, addr)
	mustExchange(t, client)
	old.Close()
	<-ended
	sendUntilAway(t, p, addr, "gate+udp", client)
	moved := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), uint16(number))
	answerUDP(t, listenUDP(t, moved.String()), echoUDP)
	at.Store(moved.Addr())
	mustResume(t, client, time.Now(), within)
	p.Load(gate.Layer4())
	if sessions := p.WaitSessions(1, nil); len(sessions) != 1 || sessions[0].Upstream != moved.String() {
		t.Errorf("want one session with the upstream's new address: %v", sessions)
	}
}

// A session whose upstream can't be resolved ends, and the client's next datagrams try again.
func TestUDPUpstreamThatDoesNotResolve(t *testing.T) {
	t.Parallel()
	var at atomic.Value
	upstream := listenUDP(t, "127.0.0.1:0")
	names := withNameServer(t, func(from netip.AddrPort, query []byte) []byte {
		if ip, ok := at.Load().(netip.Addr); ok {
			return addressOf(query, ip)
		}
		return noSuchName(from, query)
	})
	addr := gate.ReserveAddr(t)
	_, number, _ := net.SplitHostPort(upstream.LocalAddr().String())
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward(hostName+":"+number))), names)
	client := dialUDP(t, addr)
	mustWrite(t, client, "in vain")
	if s := p.WaitSession(port(client)); s.Status != 502 || s.Reason != "connect_failed" || s.Error == "" || s.DatagramsUp != 0 {
		t.Errorf("access log: %s", s.Line)
	}
	at.Store(netip.MustParseAddr("127.0.0.1"))
	answerUDP(t, upstream, echoUDP)
	mustResume(t, client, time.Now(), peerTimeout) // the failure is remembered for a moment
}

// After sessions have ended in every way that there is, the process holds what it held before.
func TestNothingIsLeftOfUDPSessionsHoweverTheyEnd(t *testing.T) {
	t.Parallel()
	const each = 20
	onEachDatagramNetwork(t, func(t *testing.T, network string) {
		upstream := serveUDP(t, echoUDP)
		var addrs []string
		var servers []gate.Server
		listen := func(handlers ...gate.JSON) {
			addrs = append(addrs, gate.ReserveAddr(t))
			servers = append(servers, gate.Listen(network+"/"+addrs[len(addrs)-1], handlers...))
		}
		listen(gate.Forward(upstream).With("idle_timeout", "1s"))
		listen(gate.Forward(upstream).With("max_lifetime", "1s"))
		listen(gate.Forward(upstream).With("max_replies", 1))
		listen(gate.Forward(gate.ReserveAddr(t)).With("idle_timeout", "1s")) // refuses
		listen(gate.Forward("nowhere.invalid:9"))
		ends := map[string]int{"idle_timeout": 2, "max_lifetime": 1, "max_replies": 1, "connect_failed": 1}
		if network == "gate+udp" {
			// Not on the stock network: it never comes back from closing a session of a server that has ended (caddy-l4 v0.1.2,
			// server.go: nobody takes from closeCh any more).
			listen(gate.Forward(upstream))
			ends["drain"] = 1
		}
		listen(gate.JSON{"handler": "close"}) // has no session
		config := gate.Layer4(servers...)
		p := gate.Start(t, config, withNameServer(t, noSuchName))
		rounds := 0
		run := func(n int) {
			rounds += n
			for range n {
				for _, addr := range addrs {
					mustWrite(t, dialUDP(t, addr), "x")
				}
			}
			for _, reason := range []string{"idle_timeout", "max_lifetime", "max_replies", "connect_failed"} {
				p.WaitSessions(rounds*ends[reason], func(s gate.Session) bool { return s.Reason == reason })
			}
			p.Load(gate.Layer4())
			p.Load(config)
			p.WaitSessions(rounds*ends["drain"], func(s gate.Session) bool { return s.Reason == "drain" })
		}
		run(1) // what is made once and kept is made
		before := p.Baseline()
		run(each)
		before.MustReturn(t, peerTimeout)
		if active := p.Metrics().Sum("caddy_portgate_sessions_active"); active != 0 {
			t.Errorf("%v sessions are counted as active", active)
		}
	})
}
