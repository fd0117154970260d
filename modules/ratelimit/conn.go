package ratelimit

import (
	"net"
	"strings"
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// heldConn is a connection that is held to its terms by whoever reads and writes it.
//
// A relay that keeps the terms of its session itself takes what is in it instead: see [heldConn.Unheld].
type heldConn struct {
	net.Conn
	terms     *session.Terms
	datagrams bool
	closed    chan struct{}
	close     func() error

	reading, writing side
}

// side is one direction, which one goroutine uses at a time.
type side struct {
	mu    sync.Mutex
	pacer session.Pacer
	until time.Time // pauses
	began bool
}

func newHeldConn(conn net.Conn, network string, terms *session.Terms) *heldConn {
	c := &heldConn{Conn: conn, terms: terms, datagrams: strings.Contains(network, "udp"), closed: make(chan struct{})}
	c.reading.pacer, c.writing.pacer = terms.Up, terms.Down
	c.close = sync.OnceValue(func() error {
		close(c.closed)
		if terms.End != nil {
			terms.End()
		}
		return conn.Close()
	})
	return c
}

// Unheld returns the connection without its terms, for those who keep to them.
func (c *heldConn) Unheld() net.Conn { return c.Conn }

// Close closes the connection, and ends a pause.
func (c *heldConn) Close() error { return c.close() }

// Read reads no more than may be read now.
func (c *heldConn) Read(b []byte) (int, error) {
	c.reading.mu.Lock()
	defer c.reading.mu.Unlock()
	for {
		if !c.reading.wait(c.closed) {
			return 0, net.ErrClosed
		}
		n, err := c.Conn.Read(c.reading.part(b, c.datagrams))
		c.reading.moved(n)
		if err == nil && c.terms.Datagram != nil && c.datagrams && !c.terms.Datagram() {
			continue
		}
		return n, err
	}
}

// Write writes all, in as many parts as it takes.
func (c *heldConn) Write(b []byte) (written int, err error) {
	c.writing.mu.Lock()
	defer c.writing.mu.Unlock()
	for {
		if !c.writing.wait(c.closed) {
			return written, net.ErrClosed
		}
		n, err := c.Conn.Write(c.writing.part(b[written:], c.datagrams))
		c.writing.moved(n)
		written += n
		if err != nil || written == len(b) {
			return written, err
		}
	}
}

// wait waits for the end of the pause. It reports false where the connection is closed.
func (s *side) wait(closed <-chan struct{}) bool {
	if s.pacer == nil {
		return true
	}
	if !s.began {
		s.began = true
		s.moved(0)
	}
	pause := time.Until(s.until)
	if pause <= 0 {
		return true
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-closed:
		return false
	}
}

// part is as much of b as may move at a time; a datagram is not divided.
func (s *side) part(b []byte, datagram bool) []byte {
	if s.pacer == nil || datagram {
		return b
	}
	return b[:min(len(b), s.pacer.Turn())]
}

func (s *side) moved(n int) {
	if s.pacer == nil {
		return
	}
	if pause := s.pacer.Moved(n); pause > 0 {
		s.until = time.Now().Add(pause)
	}
}

// wasGivenAway tells by the error of a handler whether somebody else closes the connection now: the listener in front of an
// HTTP site gives it to that. The error has no name that could be compared with.
func wasGivenAway(err error) bool { return err != nil && err.Error() == "hijacked connection" }
