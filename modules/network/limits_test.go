package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

func sessionsOf(g *generation) int64 { return g.socket.(*socket).sessions.Sessions() }

func expectSessions(t *testing.T, g *generation, want int64) {
	t.Helper()
	if got := sessionsOf(g); got != want {
		t.Errorf("%d sessions are counted, want %d", got, want)
	}
}

// A connection beyond the cap is reset at once, and nobody else waits for it.
func TestConnectionsBeyondTheCapAreReset(t *testing.T) {
	t.Parallel()
	g := listenOn(config(t), t, freeAddress(t))
	g.settings.maxSessions = 2
	conns := make(chan net.Conn, 3)
	go func() {
		for range 3 {
			if conn, err := g.Accept(); err == nil {
				conns <- conn
			}
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		return conn
	}
	dial()
	first := <-conns
	dial()
	second := <-conns
	for range 5 {
		conn, err := net.Dial("tcp", g.Addr().String())
		if err == nil { // else it was reset already
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("beyond the cap: %v", err)
		}
	}
	expectSessions(t, g, 2)
	_ = first.Close()
	_ = first.Close() // counts once
	expectSessions(t, g, 1)
	client := dial()
	third := <-conns
	if _, err := io.WriteString(third, "hello"); err != nil {
		t.Error(err)
	}
	if _, err := client.Read(make([]byte, 5)); err != nil {
		t.Errorf("after a session has ended: %v", err)
	}
	expectSessions(t, g, 2)
	_, _ = second.Close(), third.Close()
	expectSessions(t, g, 0)
}

// The count is exact, however a connection ends.
func TestEveryEndGivesTheDescriptorsBack(t *testing.T) {
	t.Parallel()
	g := listenOn(config(t), t, freeAddress(t))
	for name, end := range map[string]func(*Conn){
		"closed":               func(c *Conn) { _ = c.Close() },
		"closed after a write": func(c *Conn) { _, _ = c.Write([]byte("hello")); _ = c.Close() },
		"closed twice":         func(c *Conn) { _, _ = c.Close(), c.Close() },
		"handed over and closed": func(c *Conn) {
			d := c.Descriptors()
			_ = c.Close()
			expectSessions(t, g, 1)
			d.Release()
		},
		"handed over twice": func(c *Conn) {
			c.Descriptors().Release()
			descriptors.Of(c).Release()
			_ = c.Close()
		},
	} {
		client, err := net.Dial("tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := g.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := sessionsOf(g); got != 1 {
			t.Fatalf("before %q there are %d sessions", name, got)
		}
		end(conn.(*Conn))
		if got := sessionsOf(g); got != 0 {
			t.Errorf("%s: %d sessions are left", name, got)
		}
		_ = client.Close()
	}
}

// Where there are no descriptors for another session of datagrams, a new one takes the place of an old one, and every socket has at
// least one.
func TestDatagramsWithoutDescriptors(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 100, perClient: 100})
	all := *s.settings.Load()
	all.reserve = descriptors.Limit() // nothing is left
	s.settings.Store(&all)
	s.flood(0, 3)
	sessions := s.taken()
	expectPorts(t, sessions, 0)
	expectPlaces(t, s, 1, 1)
	if !sessions[0].ended.Load() {
		t.Error("the first one was not given up for the others")
	}
	_ = sessions[0].Close()
	expectPorts(t, s.taken(), 2)
	expectPlaces(t, s, 1, 0)
	if got := s.dropped(listeners.DropSessionLimit); got != 0 {
		t.Errorf("%d were refused", got)
	}
	none := all
	none.reserve = 0
	s.settings.Store(&none)
	s.flood(10, 3)
	if got := len(s.taken()); got != 3 {
		t.Errorf("%d sessions with descriptors to spare", got)
	}
}

func TestSettingsFollowTheConfig(t *testing.T) {
	t.Parallel()
	g := listenOn(config(t), t, freeAddress(t))
	want := fmt.Sprint(descriptors.DefaultShare(descriptors.DefaultReserve())/2, descriptors.DefaultReserve())
	if got := fmt.Sprint(g.settings.maxSessions, g.settings.reserve); got != want {
		t.Errorf("sessions and reserve are %s, want %s", got, want)
	}
}
