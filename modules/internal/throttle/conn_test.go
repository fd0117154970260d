package throttle

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// turns is a pacer that wants a pause after each turn, and notes what it is told.
type turns struct {
	turn  int
	pause time.Duration
	told  []int
}

func (p *turns) Quantum() int { return p.turn }

func (p *turns) Moved(n int) time.Duration {
	p.told = append(p.told, n)
	if n == 0 {
		return 0
	}
	return p.pause
}

// wrap returns a connection that has the throttle, and its other end.
func wrap(t *testing.T, network string, throttle *Throttle) (throttled *Conn, other net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	_ = b.SetDeadline(time.Now().Add(time.Minute))
	return Wrap(a, network, throttle), b
}

func TestConnPauses(t *testing.T) {
	t.Parallel()
	const pause = 30 * time.Millisecond
	for name, transfer := range map[string]func(throttled, other net.Conn) error{
		"read": func(throttled, other net.Conn) error {
			go func() { _, _ = other.Write(make([]byte, 10)) }()
			_, err := io.ReadFull(throttled, make([]byte, 10))
			return err
		},
		"write": func(throttled, other net.Conn) error {
			go func() { _, _ = io.Copy(io.Discard, other) }()
			_, err := throttled.Write(make([]byte, 10))
			return err
		},
	} {
		pacer := &turns{turn: 4, pause: pause}
		throttled, other := wrap(t, "tcp", &Throttle{Limits: Limits{PaceUp: pacer, PaceDown: pacer}})
		start := time.Now()
		if err := transfer(throttled, other); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 2*pause {
			t.Errorf("%s: three turns took %v, want two pauses of %v", name, took, pause)
		}
		if want := []int{0, 4, 4, 2}; !equalInts(pacer.told, want) {
			t.Errorf("%s: told %v, want %v", name, pacer.told, want)
		}
	}
}

func equalInts(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// A pause ends when the connection is closed, and so does the throttle.
func TestCloseEndsAPause(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 2)
	throttled, other := wrap(t, "tcp", &Throttle{
		Limits: Limits{PaceUp: &turns{turn: 1, pause: time.Hour}},
		End:    func() { ended <- struct{}{} },
	})
	go func() { _, _ = other.Write([]byte("ab")) }()
	if _, err := throttled.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := throttled.Read(make([]byte, 5))
		failed <- err
	}()
	throttled.Close()
	throttled.Close()
	if err := <-failed; err == nil {
		t.Error("read on")
	}
	if n := len(ended); n != 1 {
		t.Errorf("End was called %d times", n)
	}
}

// Once the throttle is taken, the connection is free.
func TestTakenThrottle(t *testing.T) {
	t.Parallel()
	pacer := &turns{turn: 1, pause: time.Hour}
	throttle := &Throttle{Limits: Limits{PaceUp: pacer, AllowUp: func(int) bool { return false }}}
	throttled, other := wrap(t, "tcp", throttle)
	if limits := throttle.Take(); limits.PaceUp != pacer || limits.AllowUp(1) {
		t.Errorf("took %+v", limits)
	}
	go func() { _, _ = other.Write([]byte("abc")) }()
	if n, err := throttled.Read(make([]byte, 5)); n != 3 || err != nil || len(pacer.told) > 0 {
		t.Errorf("read %d, %v, told %v: want no limit any more", n, err, pacer.told)
	}
	if Unwrap(Wrap(throttled, "tcp", throttle)) != throttled.Conn {
		t.Error("Unwrap left a throttle")
	}
}

// Datagrams that may not pass are not seen, the others are whole.
func TestDatagrams(t *testing.T) {
	t.Parallel()
	calls := 0
	everySecond := func(int) bool { calls++; return calls%2 == 1 }
	throttled, other := wrap(t, "udp", &Throttle{Limits: Limits{AllowUp: everySecond, PaceUp: &turns{turn: 1, pause: time.Hour}}})
	go func() {
		for i := range 5 {
			_, _ = other.Write(bytes.Repeat([]byte{byte('a' + i)}, 3))
		}
		_ = other.Close()
	}()
	if got, _ := io.ReadAll(throttled); string(got) != "aaaccceee" {
		t.Errorf("got %q", got)
	}
	calls = 0
	throttled, other = wrap(t, "udp", &Throttle{Limits: Limits{AllowDown: everySecond}})
	go func() {
		for i := range 5 {
			_, _ = throttled.Write(bytes.Repeat([]byte{byte('a' + i)}, 3))
		}
		_ = throttled.Close()
	}()
	if got, _ := io.ReadAll(other); string(got) != "aaaccceee" {
		t.Errorf("got %q", got)
	}
}
