package session

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

func (p *turns) Turn() int { return p.turn }

func (p *turns) Moved(n int) time.Duration {
	p.told = append(p.told, n)
	if n == 0 {
		return 0
	}
	return p.pause
}

// hold returns a connection that is held to the terms, and its other end.
func hold(t *testing.T, network string, terms *Terms) (held *Held, other net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	_ = b.SetDeadline(time.Now().Add(time.Minute))
	return Hold(a, network, terms), b
}

func TestHeldConnectionPauses(t *testing.T) {
	t.Parallel()
	const pause = 30 * time.Millisecond
	for name, transfer := range map[string]func(held, other net.Conn) error{
		"read": func(held, other net.Conn) error {
			go func() { _, _ = other.Write(make([]byte, 10)) }()
			_, err := io.ReadFull(held, make([]byte, 10))
			return err
		},
		"write": func(held, other net.Conn) error {
			go func() { _, _ = io.Copy(io.Discard, other) }()
			_, err := held.Write(make([]byte, 10))
			return err
		},
	} {
		pacer := &turns{turn: 4, pause: pause}
		held, other := hold(t, "tcp", &Terms{Limits: Limits{PaceUp: pacer, PaceDown: pacer}})
		start := time.Now()
		if err := transfer(held, other); err != nil {
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

// A pause ends when the connection is closed, and so do the terms.
func TestCloseEndsAPause(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 2)
	held, other := hold(t, "tcp", &Terms{
		Limits: Limits{PaceUp: &turns{turn: 1, pause: time.Hour}},
		End:    func() { ended <- struct{}{} },
	})
	go func() { _, _ = other.Write([]byte("ab")) }()
	if _, err := held.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := held.Read(make([]byte, 5))
		failed <- err
	}()
	held.Close()
	held.Close()
	if err := <-failed; err == nil {
		t.Error("read on")
	}
	if n := len(ended); n != 1 {
		t.Errorf("the terms have ended %d times", n)
	}
}

// Once there is a session, whoever moves its bytes keeps to the terms.
func TestSessionTakesTheTerms(t *testing.T) {
	t.Parallel()
	ended := 0
	pacer := &turns{turn: 1, pause: time.Hour}
	terms := &Terms{
		Limits: Limits{PaceUp: pacer, AllowUp: func(int) bool { return false }},
		End:    func() { ended++ },
	}
	held, other := hold(t, "tcp", terms)
	arrival := Arrival{Conn: held, Network: "tcp", Listener: ":1"}
	arrival.Agree(terms)
	if arrival.Begun() {
		t.Error("a session without Begin")
	}
	scope, _, _ := newScope(t, 0, 0)
	s := arrival.Begin(scope)
	if !arrival.Begun() || s.Limits().PaceUp != pacer || s.Limits().AllowUp(1) {
		t.Errorf("the session is not held to the terms: %+v", s.Limits())
	}
	go func() { _, _ = other.Write([]byte("abc")) }()
	if n, err := held.Read(make([]byte, 5)); n != 3 || err != nil || len(pacer.told) > 0 {
		t.Errorf("read %d, %v, told %v: want it not held any more", n, err, pacer.told)
	}
	s.End(End{})
	s.End(End{})
	if ended != 1 {
		t.Errorf("the terms have ended %d times", ended)
	}
	if Unheld(Hold(held, "tcp", terms)) != held.Conn {
		t.Error("Unheld left something that holds")
	}
}

// Datagrams that may not pass are not seen, the others are whole.
func TestHeldDatagrams(t *testing.T) {
	t.Parallel()
	calls := 0
	everySecond := func(int) bool { calls++; return calls%2 == 1 }
	held, other := hold(t, "udp", &Terms{Limits: Limits{AllowUp: everySecond, PaceUp: &turns{turn: 1, pause: time.Hour}}})
	go func() {
		for i := range 5 {
			_, _ = other.Write(bytes.Repeat([]byte{byte('a' + i)}, 3))
		}
		_ = other.Close()
	}()
	if got, _ := io.ReadAll(held); string(got) != "aaaccceee" {
		t.Errorf("got %q", got)
	}
	calls = 0
	held, other = hold(t, "udp", &Terms{Limits: Limits{AllowDown: everySecond}})
	go func() {
		for i := range 5 {
			_, _ = held.Write(bytes.Repeat([]byte{byte('a' + i)}, 3))
		}
		_ = held.Close()
	}()
	if got, _ := io.ReadAll(other); string(got) != "aaaccceee" {
		t.Errorf("got %q", got)
	}
}
