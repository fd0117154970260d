package relay

import (
	"testing"
	"time"
)

// The longest round counts for 15 to 30 seconds, and shorter ones do not hide it.
func TestLongestRounds(t *testing.T) {
	t.Parallel()
	var l longestRounds
	const ms = time.Millisecond
	for _, c := range []struct{ at, took, want time.Duration }{
		{10 * time.Second, 3 * ms, 3 * ms},
		{11 * time.Second, 2 * ms, 3 * ms},
		{16 * time.Second, 1 * ms, 3 * ms},
		{29 * time.Second, 2 * ms, 3 * ms},
		{30 * time.Second, 1 * ms, 2 * ms},
		{50 * time.Second, 0, 1 * ms},
		{90 * time.Second, 0, 0},
		{91 * time.Second, 5 * time.Hour, 1<<32*time.Microsecond - time.Microsecond},
	} {
		if l.note(c.at, c.took); l.of(c.at) != c.want {
			t.Errorf("at %s, after %s: %s, want %s", c.at, c.took, l.of(c.at), c.want)
		}
	}
	if n := l.of(200 * time.Second); n != 0 {
		t.Errorf("long after: %s", n)
	}
}

// holding is a session of which the test says how long it takes to handle a message.
type holding struct {
	*newcomer
	do func()
}

func (h holding) handle(*message) { h.do() }

// What holds up an event loop is seen while it does, and afterwards.
func TestLag(t *testing.T) {
	l := loops()[0]
	post := func(do func()) { l.post(message{to: holding{&newcomer{kind: inboxStreams}, do}}) }
	held, release := make(chan struct{}), make(chan struct{})
	post(func() { close(held); <-release })
	<-held
	for deadline := time.Now().Add(30 * time.Second); Lag() < 20*time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s, while a loop is held up", Lag())
		}
	}
	close(release)
	done := make(chan struct{})
	post(func() { close(done) }) // in a later round
	<-done
	if Lag() < 20*time.Millisecond {
		t.Errorf("afterwards: %s", Lag())
	}
}
