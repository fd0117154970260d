package throttle

import (
	"net"
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// Conn is a connection whose Read and Write keep to a throttle, for handlers that know nothing of throttles. Once the
// throttle is taken by a session, whoever moves the bytes of the session keeps to it instead.
type Conn struct {
	net.Conn
	throttle  *Throttle
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

// Wrap returns the connection with the throttle. The network tells whether it carries datagrams.
func Wrap(conn net.Conn, network string, t *Throttle) *Conn {
	c := &Conn{Conn: conn, throttle: t, datagrams: gate.Datagrams(network), closed: make(chan struct{})}
	c.reading.pacer, c.writing.pacer = t.PaceUp, t.PaceDown
	c.close = sync.OnceValue(func() error {
		close(c.closed)
		t.Release()
		return conn.Close()
	})
	return c
}

// Unwrap returns the connection without the throttles around it.
func Unwrap(conn net.Conn) net.Conn {
	for {
		c, ok := conn.(*Conn)
		if !ok {
			return conn
		}
		conn = c.Conn
	}
}

// Close closes the connection, and ends a pause.
func (c *Conn) Close() error { return c.close() }

// Read reads no more than may be read now. A datagram that may not pass is not seen.
func (c *Conn) Read(b []byte) (int, error) {
	if c.datagrams {
		return c.readDatagram(b)
	}
	if c.reading.pacer == nil || c.throttle.taken.Load() {
		return c.Conn.Read(b)
	}
	c.reading.mu.Lock()
	defer c.reading.mu.Unlock()
	if !c.reading.wait(c.closed) {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b[:min(len(b), c.reading.pacer.Quantum())])
	c.reading.moved(n)
	return n, err
}

func (c *Conn) readDatagram(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || c.throttle.AllowUp == nil || c.throttle.taken.Load() || c.throttle.AllowUp(n) {
			return n, err
		}
	}
}

// Write writes all, a quantum at a time. A datagram that may not pass is dropped.
func (c *Conn) Write(b []byte) (written int, err error) {
	if c.datagrams && c.throttle.AllowDown != nil && !c.throttle.taken.Load() && !c.throttle.AllowDown(len(b)) {
		return len(b), nil
	}
	if c.datagrams || c.writing.pacer == nil || c.throttle.taken.Load() {
		return c.Conn.Write(b)
	}
	c.writing.mu.Lock()
	defer c.writing.mu.Unlock()
	for {
		if !c.writing.wait(c.closed) {
			return written, net.ErrClosed
		}
		n, err := c.Conn.Write(b[written:min(len(b), written+c.writing.pacer.Quantum())])
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
