package check

import (
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// A server that sends without an end has its turn, and then others have theirs. What it has sent is read after that.
func TestReadsTakeTurns(t *testing.T) {
	t.Parallel()
	const datagrams = 5*readsAtOnce + 3
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	floods, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer floods.Close()
	var read atomic.Int64
	over := make(chan error, 1)
	x := &exchange{
		addr: floods.LocalAddr(), request: []byte("go"), over: func(err error) { over <- err },
		judge: func([]byte, bool) (bool, error) { return read.Add(1) == datagrams, nil },
	}
	l.begin(x)
	_, client, err := floods.ReadFromUDP(make([]byte, 10))
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock() // the loop waits, whatever comes
	for range datagrams {
		if _, err := floods.WriteToUDP([]byte("x"), client); err != nil {
			t.Fatal(err)
		}
	}
	done, err := l.receive(x)
	l.mu.Unlock()
	if n := read.Load(); done || err != nil || n != readsAtOnce {
		t.Errorf("%d datagrams at once, want %d: %v, %v", n, readsAtOnce, done, err)
	}
	select {
	case err := <-over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(guard):
		t.Errorf("%d of %d datagrams were read", read.Load(), datagrams)
	}
}
