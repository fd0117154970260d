package integration

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Reloads lose no connection.
func TestReloadsUnderLoadLoseNoConnection(t *testing.T) {
	const (
		reloads = 100
		clients = 16
		// A reload for every so many connections: each of them meets the full load, whatever the machine has to give.
		perReload = 200
	)
	addr := gate.ReserveAddr(t)
	upstream := serve(t, echo)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(upstream)))
	p := gate.Start(t, config, gate.WithoutRace())

	var (
		stop   atomic.Bool
		load   sync.WaitGroup
		done   atomic.Int64
		failed atomic.Int64
	)
	start := time.Now()
	for range clients {
		load.Go(func() {
			for !stop.Load() {
				if err := oneRequest(addr); err != nil {
					failed.Add(1)
					t.Errorf("a connection failed: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	for i := range reloads {
		gate.Eventually(t, peerTimeout, func() error {
			if now := done.Load(); failed.Load() == 0 && now < int64(i)*perReload {
				return fmt.Errorf("%d connections so far", now)
			}
			return nil
		})
		p.Load(config)
	}
	elapsed := time.Since(start)
	stop.Store(true)
	load.Wait()
	t.Logf("%d connections in %v, %.0f per second, during %d reloads: %d failed", done.Load(), elapsed.Round(time.Millisecond),
		float64(done.Load())/elapsed.Seconds(), reloads, failed.Load())
}

// oneRequest is a connection with a request, its response and a FIN each way.
func oneRequest(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, peerTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(peerTimeout))
	if err := exchange(conn); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return fmt.Errorf("at the end: %d bytes and %v, want EOF", n, err)
	}
	return nil
}

const manySessions = 500

// openSessions opens sessions and sees each of them work.
func openSessions(t *testing.T, addr string, n int) []*net.TCPConn {
	t.Helper()
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conns[i] = dial(t, addr)
		mustExchange(t, conns[i])
	}
	return conns
}

func TestReloadsDoNotDisturbSessions(t *testing.T) {
	addr, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
	upstream := serve(t, echo)
	kept := gate.Listen(addr, gate.Forward(upstream))
	p := gate.Start(t, gate.Layer4(kept))
	must(t, oneRequest(addr))
	p.Load(gate.Layer4(kept))
	before := p.Baseline()

	conns := openSessions(t, addr, manySessions)
	var stop atomic.Bool
	var exchanges sync.WaitGroup
	for _, conn := range conns {
		exchanges.Go(func() {
			for !stop.Load() {
				if err := exchange(conn); err != nil {
					t.Errorf("a session under way: %v", err)
					return
				}
			}
		})
	}
	// The route is kept, by an equal config and by one that has something else besides.
	p.Load(gate.Layer4(kept))
	p.Load(gate.Layer4(kept, gate.Listen(other, gate.Forward(upstream))))
	p.Load(gate.Layer4(kept))
	stop.Store(true)
	exchanges.Wait()
	for _, conn := range conns {
		mustExchange(t, conn)
		conn.Close()
	}
	p.WaitSessions(manySessions+1, func(s gate.Session) bool { return s.Status == 200 })
	before.MustReturn(t, peerTimeout)
}

func TestDrainTimeoutClosesSessionsOfReplacedConfig(t *testing.T) {
	onEachNetwork(t, drainSessions)
}

func drainSessions(t *testing.T, network string) {
	const drain = 2 * time.Second
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(serve(t, echo)).With("drain_timeout", drain.String())))
	p := gate.Start(t, config)
	must(t, oneRequest(addr))
	p.Load(config)
	before := p.Baseline()

	conns := openSessions(t, addr, manySessions)
	replacing := time.Now()
	p.Load(config)
	replaced := time.Now()
	fresh := dial(t, addr)
	mustExchange(t, fresh)

	ended := make(chan time.Time, len(conns))
	for i, conn := range conns {
		go func() {
			if i%2 == 0 { // a busy session is bounded too
				keepExchanging(conn)
			} else {
				io.Copy(io.Discard, conn)
			}
			ended <- time.Now()
		}()
	}
	wrong := 0
	var end time.Time
	for range conns {
		end = within(t, peerTimeout, "the end of a session", ended)
		if end.Sub(replacing) < drain || end.Sub(replaced) > drain+tolerance {
			wrong++
		}
	}
	if wrong > 0 {
		t.Errorf("%d sessions did not end %v to %v after the reload; the last did %v after it", wrong, drain, drain+tolerance, end.Sub(replaced))
	}
	p.WaitSessions(manySessions, func(s gate.Session) bool { return s.Reason == "drain" })
	mustExchange(t, fresh) // of the new config
	fresh.Close()
	before.MustReturn(t, peerTimeout)
}

// keepExchanging exchanges a message now and then until that fails.
func keepExchanging(conn net.Conn) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for exchange(conn) == nil {
		<-tick.C
	}
}

func TestReloadTakesEffectForTheNextConnection(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	upstreams := map[string]string{"a": serve(t, greet("a")), "b": serve(t, greet("b"))}
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(upstreams["a"]))))
	for i := range 20 {
		name := []string{"b", "a"}[i%2]
		p.Load(gate.Layer4(gate.Listen(addr, gate.Forward(upstreams[name]))))
		for range 10 {
			mustGreet(t, addr, name)
		}
	}
}

func TestPortThatLeavesTheConfigIsClosedAndItsSessionsGoOn(t *testing.T) {
	t.Parallel()
	stays, leaves := gate.ReserveAddr(t), gate.ReserveAddr(t)
	forward := gate.Forward(serve(t, echo))
	p := gate.Start(t, gate.Layer4(gate.Listen(stays, forward), gate.Listen(leaves, forward)))
	session := dial(t, leaves)
	mustExchange(t, session)
	before := p.Listeners()
	p.Load(gate.Layer4(gate.Listen(stays, forward)))
	mustRefuse(t, leaves)
	if now := p.Listeners(); now != before-1 {
		t.Errorf("%d listeners, want one less than %d", now, before)
	}
	mustExchange(t, session)
	p.Load(gate.Layer4(gate.Listen(stays, forward), gate.Listen(leaves, forward)))
	must(t, oneRequest(leaves))
	mustExchange(t, session)
}
