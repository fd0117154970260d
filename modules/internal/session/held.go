package session

import (
	"net"
	"strings"
	"sync"
	"time"
)

// Held is a connection that is held to its terms by whoever reads and writes it, for handlers that know nothing of
// terms. Once it has a session, whoever moves that one's bytes keeps to them instead.
type Held struct {
	net.Conn
	terms     *Terms
	datagrams bool
	closed    chan struct{}
	close     func() error

	reading, writing side
}

// side is one direction, which is used by one goroutine at a time.
type side struct {
	mu    sync.Mutex
	pacer Pacer
	began bool
	until time.Time // pauses
}

// Hold returns the connection, held to the terms.
func Hold(conn net.Conn, network string, terms *Terms) *Held {
	c := &Held{Conn: conn, terms: terms, datagrams: strings.Contains(network, "udp"), closed: make(chan struct{})}
	c.reading.pacer, c.writing.pacer = terms.PaceUp, terms.PaceDown
	c.close = sync.OnceValue(func() error {
		close(c.closed)
		if terms.End != nil {
			terms.End()
		}
		return conn.Close()
	})
	return c
}

// Unheld returns the connection without what holds it to its terms.
func Unheld(conn net.Conn) net.Conn {
	for {
		c, ok := conn.(*Held)
		if !ok {
			return conn
		}
		conn = c.Conn
	}
}

// Close closes the connection, and ends a pause.
func (c *Held) Close() error { return c.close() }

// Read reads no more than may be read now. A datagram that may not pass is not seen.
func (c *Held) Read(b []byte) (int, error) {
	if c.datagrams {
		return c.readDatagram(b)
	}
	if c.reading.pacer == nil || c.terms.taken.Load() {
		return c.Conn.Read(b)
	}
	c.reading.mu.Lock()
	defer c.reading.mu.Unlock()
	if !c.reading.wait(c.closed) {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b[:min(len(b), c.reading.pacer.Turn())])
	c.reading.moved(n)
	return n, err
}

func (c *Held) readDatagram(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || c.terms.AllowUp == nil || c.terms.taken.Load() || c.terms.AllowUp(n) {
			return n, err
		}
	}
}

// Write writes all, in as many turns as it takes. A datagram that may not pass is dropped.
func (c *Held) Write(b []byte) (written int, err error) {
	if c.datagrams && c.terms.AllowDown != nil && !c.terms.taken.Load() && !c.terms.AllowDown(len(b)) {
		return len(b), nil
	}
	if c.datagrams || c.writing.pacer == nil || c.terms.taken.Load() {
		return c.Conn.Write(b)
	}
	c.writing.mu.Lock()
	defer c.writing.mu.Unlock()
	for {
		if !c.writing.wait(c.closed) {
			return written, net.ErrClosed
		}
		n, err := c.Conn.Write(b[written:min(len(b), written+c.writing.pacer.Turn())])
		c.writing.moved(n)
		written += n
		if err != nil || written == len(b) {
			return written, err
		}
	}
}

// wait waits for the end of the pause. It reports false where the connection is closed.
func (s *side) wait(closed <-chan struct{}) bool {
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

func (s *side) moved(n int) {
	if pause := s.pacer.Moved(n); pause > 0 {
		s.until = time.Now().Add(pause)
	}
}
