package integration

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Forged datagrams fill the table of UDP sessions, so that each opens a socket and closes another one. TCP sessions on the same
// event loops go on: what their exchanges take is compared with the same flood to somebody else, which keeps the machine as busy. The
// medians of several rounds, taken in turn, leave out what else the machine does; where that does not suffice, there are more rounds. What a
// loop does between two times that it serves a session, tests of the relay count; this one shows that nothing else holds up streams.
func TestFloodOfDatagramsDoesNotHoldUpStreams(t *testing.T) {
	const (
		established          = 50
		perSecond            = 30_000
		every                = 20 * time.Millisecond // exchanges of each session
		roundTakes           = time.Second
		minRounds, maxRounds = 3, 12
		atMost               = 8
	)
	f := startForgedFlood(t)
	f.send(t, 2*int(f.maxSessions)) // the table is full
	streams := openMany(t, f.tcp, established)
	sink := listenUDP(t, "0.0.0.0:0")
	host, _, _ := net.SplitHostPort(f.addr)
	beside := net.JoinHostPort(host, fmt.Sprint(sink.LocalAddr().(*net.UDPAddr).Port))
	var p99 [2][]time.Duration // beside the flood of somebody else, and of the process
	measure := func(through int) {
		var stop atomic.Bool
		ended := make(chan error, 1)
		before := f.sent
		go func() { ended <- f.flood([]string{beside, f.addr}[through], perSecond, &stop) }()
		took, err := chat(streams, every, roundTakes)
		stop.Store(true)
		must(t, errors.Join(err, within(t, peerTimeout, "flood", ended)))
		t.Logf("%s: %d datagrams, p50 %v, p99 %v", []string{"beside", "flood"}[through], f.sent-before, percentile(took, 50), percentile(took, 99))
		p99[through] = append(p99[through], percentile(took, 99))
	}
	times := func() float64 { return float64(median(p99[1])) / float64(median(p99[0])) }
	for round := 0; round < minRounds || round < maxRounds && times() > atMost; round++ {
		measure(0)
		measure(1)
	}
	t.Logf("medians of p99: %v beside, %v under the flood: %.1f times", median(p99[0]), median(p99[1]), times())
	if times() > atMost {
		t.Errorf("p99 of an exchange is %v under the flood, want at most %d times %v", median(p99[1]), atMost, median(p99[0]))
	}
	if evicted := f.p.Metrics().Sum("caddy_portgate_udp_sessions_evicted_total", f.listener); evicted < perSecond/10 {
		t.Errorf("%v sessions were evicted: that is no flood", evicted)
	}
}

// flood sends so many datagrams a second until it is stopped.
func (f *forgedFlood) flood(to string, perSecond int, stop *atomic.Bool) error {
	start := time.Now()
	for sent := 0; !stop.Load(); {
		due := int(time.Since(start).Seconds() * float64(perSecond))
		if err := f.forger.trySend(to, f.sent, due-sent); err != nil {
			return err
		}
		f.sent, sent = f.sent+due-sent, due
		<-time.After(time.Millisecond)
	}
	return nil
}

// A question that an upstream refuses is answered by the next one, whose name is in the access log.
func TestRefusedQuestionIsAnsweredByTheNextUpstream(t *testing.T) {
	t.Parallel()
	addr, dead, alive := gate.ReserveAddr(t), gate.ReserveAddr(t), serveUDP(t, echoUDP)
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward(dead, alive).With("idle_timeout", "1s"))))
	const clients = 20
	for range clients {
		conn := dialUDP(t, addr)
		mustExchange(t, conn)
		conn.Close()
	}
	gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_sessions_active", 0) })
	m := p.Metrics()
	must(t, equal(m, "caddy_portgate_datagrams_total", clients, label("listener", addr), label("direction", "up")))
	must(t, equal(m, "caddy_portgate_datagrams_dropped_total", 0, label("listener", addr), label("reason", "upstream_refused")))
}
