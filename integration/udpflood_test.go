package integration

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// hostile is the address of those that the others must not notice.
const hostile = "127.0.0.66"

// fromHostile is a gate+udp server in which hostile clients get handlers of their own, before others are forwarded.
func fromHostile(addr, upstream string, handlers ...gate.JSON) gate.Server {
	server := gate.ListenUDP(addr, gate.Forward(upstream))
	server.Routes = append([]gate.Route{{Match: []gate.JSON{{"remote_ip": gate.JSON{"ranges": []string{hostile}}}}, Handle: handlers}}, server.Routes...)
	return server
}

// A client whose datagrams nobody takes does not block those of others.
func TestFloodOfOneClientDisturbsNobody(t *testing.T) {
	const nowhere = "nowhere.invalid:9"
	silent := func(netip.AddrPort, []byte) []byte { return nil }
	cases := map[string]struct {
		handler  gate.JSON
		resolver func(from netip.AddrPort, query []byte) []byte
	}{
		"its route closes":                     {gate.JSON{"handler": "close"}, silent},
		"its upstream's name does not exist":   {gate.Forward(nowhere), noSuchName},
		"its upstream's name gets no response": {gate.Forward(nowhere), silent},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			upstream := serveUDP(t, echoUDP)
			p := gate.Start(t, gate.Layer4(fromHostile(addr, upstream, c.handler)), gate.WithoutRace(), withNameServer(t, c.resolver))
			mustAnswerUDP(t, addr, peerTimeout)
			before := droppedBySystem(t, addr, upstream)
			friend := startAsking(dialUDP(t, addr), 10*time.Millisecond)
			<-time.After(time.Second)

			// From one port, and from many.
			const atOnce, ports = 1000, 50
			flood(t, hostile, addr, atOnce, 1)
			took := mustAnswerUDP(t, addr, tolerance)
			flood(t, hostile, addr, atOnce/ports, ports)
			tookAgain := mustAnswerUDP(t, addr, tolerance)
			if got := p.Metrics().Sum("caddy_portgate_datagrams_total", label("listener", addr), label("direction", "up")); got < 2*atOnce {
				t.Errorf("%v datagrams have come, want all of the floods' %d", got, 2*atOnce)
			}
			<-time.After(500 * time.Millisecond) // what the floods have left behind
			sent, answers := friend.finish(t)
			t.Logf("a new client was answered after %v and %v, the other one's %d messages after %v at most", took, tookAgain, sent, answers[len(answers)-1])
			if lost, may := sent-len(answers), droppedBySystem(t, addr, upstream)-before; lost > may {
				t.Errorf("%d of %d datagrams of another client are lost, of which the system has dropped at most %d", lost, sent, may)
			}
		})
	}
}

// Two sessions get stuck: one behind a handler that takes next to nothing, one with an upstream that never reads. Another session's
// exchanges take as long as before. The medians of several rounds, taken in turn, leave out what else the machine does; where that does
// not suffice, there are more rounds.
func TestStuckUDPSessionsSlowNobody(t *testing.T) {
	const (
		throttled, deaf      = hostile, "127.0.0.67"
		each                 = 4 * time.Millisecond // datagrams of each client
		roundTakes           = 600 * time.Millisecond
		minRounds, maxRounds = 5, 20
		atMost               = 2
	)
	addr := gate.ReserveAddr(t)
	upstream := serveUDP(t, echoUDP)
	crawl := gate.JSON{"handler": "throttle", "read_bytes_per_second": 64, "read_burst_size": 64}
	server := fromHostile(addr, upstream, crawl, gate.Forward(upstream))
	server.Routes = slices.Insert(server.Routes, 1, gate.Route{
		Match:  []gate.JSON{{"remote_ip": gate.JSON{"ranges": []string{deaf}}}},
		Handle: []gate.JSON{gate.Forward(listenUDP(t, "127.0.0.1:0").LocalAddr().String())},
	})
	p := gate.Start(t, gate.Layer4(server), gate.WithoutRace())
	friend := dialUDP(t, addr)
	mustExchange(t, friend)
	ends := []string{addr, upstream, friend.LocalAddr().String()}
	// They have got stuck before the first round. That they send is part of the baseline: it keeps the machine busy.
	flood(t, throttled, addr, 200, 1)
	flood(t, deaf, addr, 5000, 1)
	var p99 [2][]time.Duration // beside the process, and through it
	sinks := [2]string{listenUDP(t, "127.0.0.1:0").LocalAddr().String(), addr}
	measure := func(through int) {
		stuck := []*asker{startAsking(dialUDPFrom(t, throttled, sinks[through]), each), startAsking(dialUDPFrom(t, deaf, sinks[through]), each)}
		before := droppedBySystem(t, ends...)
		a := startAsking(friend, each)
		<-time.After(roundTakes)
		sent, took := a.finish(t)
		if lost, may := sent-len(took), droppedBySystem(t, ends...)-before; lost > may {
			t.Errorf("%d of %d datagrams are lost, of which the system has dropped at most %d", lost, sent, may)
		}
		p99[through] = append(p99[through], percentile(took, 99))
		for _, s := range stuck {
			s.abandon()
		}
	}
	times := func() float64 { return float64(median(p99[1])) / float64(median(p99[0])) }
	for round := 0; round < minRounds || round < maxRounds && times() > atMost; round++ {
		measure(0)
		measure(1)
	}
	t.Logf("medians of p99: %v beside, %v with stuck sessions: %.1f times", median(p99[0]), median(p99[1]), times())
	if times() > atMost {
		t.Errorf("p99 of an exchange is %v with stuck sessions, want at most %d times %v", median(p99[1]), atMost, median(p99[0]))
	}
	if full := p.Metrics().Sum("caddy_portgate_datagrams_dropped_total", label("listener", addr), label("reason", "queue_full")); full == 0 {
		t.Error("no session has got stuck")
	}
}

// flood sends datagrams back to back from each of so many ports.
func flood(t testing.TB, ip, addr string, n, ports int) {
	t.Helper()
	for range ports {
		conn := dialUDPFrom(t, ip, addr)
		for i := range n {
			if _, err := conn.Write(messageOf(uint64(i))); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
	}
}

// withNameServer gives the process a name server that answers like this.
func withNameServer(t testing.TB, handle func(from netip.AddrPort, query []byte) []byte) gate.Option {
	t.Helper()
	const dns = 53 // resolv.conf has no place for a port
	var conn *net.UDPConn
	for last := byte(1); conn == nil; last++ {
		conn, _ = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 53, 53, last), Port: dns})
		if last == 255 {
			t.Fatal("no 127.53.53.1 to 254 to listen on port 53: this test runs a name server there, run it as root")
		}
	}
	answerUDP(t, conn, handle)
	ip := conn.LocalAddr().(*net.UDPAddr).IP
	return gate.WithResolver(writeFile(t, "resolv.conf", "nameserver "+ip.String()+"\n"))
}

// noSuchName answers a query of DNS that the name does not exist.
func noSuchName(_ netip.AddrPort, query []byte) []byte {
	const response, nxDomain = 0x80, 3 // RFC 1035, section 4.1.1
	if len(query) < 12 {
		return nil
	}
	query[2] |= response
	query[3] = nxDomain
	return query
}

// addressOf answers a query of DNS for the address of a name.
func addressOf(query []byte, ip netip.Addr) []byte {
	const (
		header               = 12
		queries, answers     = 4, 6 // offsets of the counts
		typeA                = 1
		response, recursion  = 0x80, 0x80
		nameAtHeader, tclass = 0xc0, 1
	)
	if len(query) < header {
		return nil
	}
	end := header
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end])
	}
	end += 1 + 4 // the root, type and class
	if end > len(query) {
		return nil
	}
	answer := slices.Clone(query[:end])
	answer[2], answer[3] = answer[2]|response, recursion
	clear(answer[queries:header])
	answer[queries+1] = 1
	if query[end-3] == typeA {
		answer[answers+1] = 1
		answer = append(answer, nameAtHeader, header, 0, typeA, 0, tclass, 0, 0, 0, 0, 0, 4)
		answer = append(answer, ip.AsSlice()...)
	}
	return answer
}
