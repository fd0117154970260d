package check

import (
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// A check that is answered by the time that all of its round have begun needs no epoll. Others wait for their answer.
func TestAnswersThatAreThere(t *testing.T) {
	t.Parallel()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	answered, goOn := make(chan struct{}), make(chan struct{})
	addr := server(t, "unix", func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1000))
		<-goOn
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		answered <- struct{}{}
	})
	p, err := Probe{Kind: HTTP, Text: "/"}.prepare()
	if err != nil {
		t.Fatal(err)
	}
	for _, early := range []bool{true, false} {
		over := make(chan error, 1)
		x := p.exchange(addr, "", nil)
		x.over = func(err error) { over <- err }
		if done, err := x.connect(); done || err != nil || !x.connected {
			t.Fatalf("%t, %v, connected %t", done, err, x.connected)
		}
		if early {
			goOn <- struct{}{}
			await(t, answered)
		}
		l.mu.Lock()
		done, err := l.add(x)
		watched, open := x.watched, len(l.open)
		l.mu.Unlock()
		if done != early || err != nil || watched == early || (open == 0) != early {
			t.Errorf("answered %t: over %t, %v, watched %t, %d open", early, done, err, watched, open)
		}
		if !early {
			goOn <- struct{}{}
			await(t, answered)
			if err := await(t, over); err != nil {
				t.Error(err)
			}
		}
	}
}

// Of checks that begin together, each has one result, but for one that was cancelled.
func TestChecksThatBeginTogether(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		open, shut := server(t, "tcp", func(conn net.Conn) { _, _ = conn.Write([]byte("SSH-2.0")) }), closed(t, "tcp")
		p, err := Probe{Kind: Send, Expect: "^SSH-"}.prepare()
		if err != nil {
			t.Fatal(err)
		}
		type result struct {
			of  int
			err error
		}
		results := make(chan result, 100)
		var all []*exchange
		for i := range 30 {
			x := p.exchange([]net.Addr{open, shut, open}[i%3], "", nil)
			x.over = func(err error) { results <- result{i, err} }
			x.cancelled.Store(i%3 == 2)
			all = append(all, x)
		}
		e.begin(all...)
		seen := make(map[int]bool)
		for range 20 {
			r := await(t, results)
			if seen[r.of] || r.of%3 == 2 || (r.err != nil) != (r.of%3 == 1) {
				t.Errorf("%d: %v", r.of, r.err)
			}
			seen[r.of] = true
		}
		if len(results) > 0 {
			t.Errorf("%d results too many", len(results))
		}
	})
}

// An answer of which more has to come is looked at once for each part.
func TestPartsAreJudgedOnce(t *testing.T) {
	t.Parallel()
	times, x := 0, new(exchange)
	judge := x.noting(func(reply []byte, ended bool) (bool, error) {
		times++
		return ended, errNoDescriptors
	})
	if done, _ := judge([]byte("-NOAUTH"), false); done || times != 1 || x.timedOut() != error(errNoDescriptors) {
		t.Errorf("%t, judged %d times, %v", done, times, x.timedOut())
	}
}

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
	n := read.Load() // before the loop goes on
	l.mu.Unlock()
	if done || err != nil || n != readsAtOnce {
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
