package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// moves are the addresses between which an operator changes, to and fro.
var moves = []struct {
	first, second string
	reloads       int
}{
	{"127.0.0.1:%d", ":%d", 20},
	{"127.0.0.1:%d", "0.0.0.0:%d", 4},
	{"0.0.0.0:%d", ":%d", 4},
}

// pace is what four clients keep to, which are 200 connections or questions a second together.
const pace = 20 * time.Millisecond

// A reload from an address to one that overlaps, and back, loses no connection and no datagram while clients are at it.
func TestAddressIsMovedInOneReload(t *testing.T) {
	for _, move := range moves {
		onFreePort(t, func(port int) error {
			first, second := fmt.Sprintf(move.first, port), fmt.Sprintf(move.second, port)
			current, err := tryListen(config(t), t, first)
			if err != nil {
				return err
			}
			done := serve(t, current, "here")
			stop := make(chan struct{})
			var clients sync.WaitGroup
			var asked, lost atomic.Int64
			for range 4 {
				clients.Go(func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(pace):
						}
						asked.Add(1)
						if got, err := ask(fmt.Sprintf("127.0.0.1:%d", port)); err != nil || got != "here" {
							lost.Add(1)
							t.Errorf("%s, %s: got %q, %v", first, second, got, err)
							return
						}
					}
				})
			}
			for i := range move.reloads {
				address := second
				if i%2 == 1 {
					address = first
				}
				next, err := tryListen(config(t), t, address)
				if err != nil {
					t.Errorf("reload %d to %s: %v", i, address, err)
					break
				}
				nextDone := serve(t, next, "here")
				if err := current.Close(); err != nil {
					t.Error(err)
				}
				<-done
				current, done = next, nextDone
			}
			close(stop)
			clients.Wait()
			t.Logf("%s, %s: %d connections, %d lost", first, second, asked.Load(), lost.Load())
			err = current.Close()
			<-done
			return err
		})
	}
}

// Afterwards nobody else can bind the port, as before.
func TestMovedPortIsNotShared(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "udp"} {
		onFreePort(t, func(port int) error {
			first, err := tryListen(config(t), t, fmt.Sprintf("gate+%s/127.0.0.1:%d", network, port))
			if err != nil {
				return err
			}
			second, err := tryListen(config(t), t, fmt.Sprintf("gate+%s/:%d", network, port))
			if err != nil {
				return errors.Join(err, first.Close())
			}
			for _, host := range []string{"127.0.0.1", "", "127.0.0.9"} {
				var other io.Closer
				if network == "tcp" {
					other, err = net.Listen(network, fmt.Sprintf("%s:%d", host, port))
				} else {
					other, err = net.ListenPacket(network, fmt.Sprintf("%s:%d", host, port))
				}
				if err == nil {
					_ = other.Close()
					t.Errorf("%s: a second process may listen on %q", network, host)
				}
			}
			return errors.Join(first.Close(), second.Close())
		})
	}
}

// Both in one config is a mistake.
func TestOverlapInOneConfig(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		ctx := config(t)
		g, err := tryListen(ctx, t, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		_, err = tryListen(ctx, t, fmt.Sprintf(":%d", port))
		want := fmt.Sprintf(`this config listens on "127.0.0.1:%d" as well, which overlaps`, port)
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		return g.Close()
	})
}

// A config that is rejected after it has bound an address leaves the running one as it was, and so do the datagrams' sockets.
func TestRejectedMove(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		address := fmt.Sprintf("127.0.0.1:%d", port)
		running, err := tryListen(config(t), t, address)
		if err != nil {
			return err
		}
		serve(t, running, "running")
		ctx, reject := caddy.NewContext(caddy.Context{Context: context.Background()})
		rejected, err := tryListen(ctx, t, fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		done := serve(t, rejected, "rejected")
		reject()
		<-done
		_ = rejected.Close()
		for range 20 {
			expectAnswer(t, address, "running")
		}
		return running.Close()
	})
}

func TestDatagramsAreMovedInOneReload(t *testing.T) {
	onFreePort(t, func(port int) error {
		first, second := fmt.Sprintf("gate+udp/127.0.0.1:%d", port), fmt.Sprintf("gate+udp/:%d", port)
		current, err := tryListen(config(t), t, first)
		if err != nil {
			return err
		}
		var sessions sync.WaitGroup
		answer := func(g *generation) <-chan struct{} {
			return answerAll(&sessions, g, func() {})
		}
		done := answer(current)
		stop := make(chan struct{})
		var clients sync.WaitGroup
		var asked atomic.Int64
		for range 4 {
			client, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			clients.Go(func() {
				defer func() { _ = client.Close() }()
				b := make([]byte, 100)
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					case <-time.After(pace):
					}
					asked.Add(1)
					question := fmt.Sprint("question ", n)
					_, _ = io.WriteString(client, question)
					_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
					size, err := client.Read(b)
					if err != nil || string(b[:size]) != question {
						t.Errorf("got %q, %v, want %q", b[:size], err, question)
						return
					}
				}
			})
		}
		for i := range 20 {
			address := second
			if i%2 == 1 {
				address = first
			}
			next, err := tryListen(config(t), t, address)
			if err != nil {
				t.Errorf("reload %d to %s: %v", i, address, err)
				break
			}
			nextDone := answer(next)
			if err := current.Close(); err != nil {
				t.Error(err)
			}
			<-done
			current, done = next, nextDone
		}
		close(stop)
		clients.Wait()
		t.Logf("%d questions", asked.Load())
		err = current.Close()
		<-done
		sessions.Wait() // the last one closes the socket
		return err
	})
}

// answerAll sends back what the sessions of g get, when hold has returned. The channel is closed when g accepts no more.
func answerAll(sessions *sync.WaitGroup, g *generation, hold func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := g.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() {
				b := make([]byte, 100)
				for {
					n, err := conn.Read(b)
					if err != nil {
						_ = conn.Close()
						return
					}
					hold()
					_, _ = conn.Write(b[:n])
				}
			})
		}
	}()
	return done
}

// What a socket has received is answered before it is closed, though it takes longer than the socket is kept in any case: it may still wait
// in the queue of the socket, for who accepts sessions, or for the answer. What does not expect an answer is not waited for.
func TestQuestionsAreAnsweredBeforeASocketGoes(t *testing.T) {
	t.Parallel()
	const questions = 3 * batchSize // more than are received at once
	for name, test := range map[string]struct {
		stall func(g *generation) (release func()) // holds up the socket that goes; nil: answers are held up
	}{
		"received late": {stall: func(g *generation) func() {
			s := g.socket.(*packetSocket)
			s.mu.Lock()
			return s.mu.Unlock
		}},
		"accepted late": {stall: func(g *generation) func() {
			g.accepting.Lock()
			return g.accepting.Unlock
		}},
		"answered late": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onFreePort(t, func(port int) error {
				old, err := tryListen(config(t), t, fmt.Sprintf("gate+udp/127.0.0.1:%d", port))
				if err != nil {
					return err
				}
				next, err := tryListen(config(t), t, fmt.Sprintf("gate+udp/:%d", port))
				if err != nil {
					return errors.Join(err, old.Close())
				}
				var sessions sync.WaitGroup
				defer sessions.Wait()
				answers := make(chan struct{})
				hold, release := func() {}, func() { close(answers) }
				if test.stall != nil {
					release = test.stall(old)
				} else {
					hold = func() { <-answers }
				}
				done, nextDone := answerAll(&sessions, old, hold), answerAll(&sessions, next, func() {})
				clients := make([]net.Conn, questions)
				for i := range clients {
					if clients[i], err = net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
						t.Fatal(err)
					}
					defer clients[i].Close()
					_, _ = io.WriteString(clients[i], "question")
				}
				closed := make(chan error, 1)
				go func() { closed <- old.Close() }()
				for !old.socket.isHidden() {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(2 * retirement)
				release()
				for i, client := range clients {
					b := make([]byte, 100)
					_ = client.SetReadDeadline(time.Now().Add(30 * time.Second))
					if n, err := client.Read(b); err != nil || string(b[:n]) != "question" {
						t.Errorf("question %d: got %q, %v", i, b[:n], err)
						break
					}
				}
				if err := <-closed; err != nil {
					t.Error(err)
				}
				<-done
				err = next.Close()
				<-nextDone
				return err
			})
		})
	}
}

// Where the sockets of a config are closed at the same time, each is kept for what it had received.
func TestSocketsAreMovedAtTheSameTime(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		old, replace := caddy.NewContext(caddy.Context{Context: t.Context()})
		defer replace()
		var closing []net.Listener
		var serving []<-chan struct{}
		for i := 1; i <= 3; i++ {
			ln, err := tryListen(old, t, fmt.Sprintf("127.0.0.%d:%d", i, port))
			if err != nil {
				return err
			}
			closing, serving = append(closing, ln), append(serving, serve(t, ln, "old"))
		}
		next, err := tryListen(config(t), t, fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		done := serve(t, next, "next")
		start := time.Now()
		var closers sync.WaitGroup
		for _, ln := range closing {
			closers.Go(func() {
				if err := ln.Close(); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took < retirement*9/10 {
					t.Errorf("%v was closed after %v", ln.Addr(), took)
				}
			})
		}
		closers.Wait()
		for _, served := range serving {
			<-served
		}
		err = next.Close()
		<-done
		return err
	})
}

// Who loads a config again right after it was rejected gets a socket of its own, and not the one that is being closed and receives
// nothing any more.
func TestRejectedMoveIsTriedAgain(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		running, err := tryListen(config(t), t, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		done := serve(t, running, "running")
		ctx, reject := caddy.NewContext(caddy.Context{Context: t.Context()})
		rejected, err := tryListen(ctx, t, fmt.Sprintf(":%d", port))
		reject()
		if err != nil {
			return errors.Join(err, running.Close())
		}
		for !rejected.socket.isHidden() {
			time.Sleep(time.Millisecond)
		}
		next, err := tryListen(config(t), t, fmt.Sprintf(":%d", port))
		if err != nil {
			return errors.Join(err, running.Close())
		}
		nextDone := serve(t, next, "next")
		if err := running.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if got, err := ask(fmt.Sprintf("127.0.0.1:%d", port)); err != nil || got != "next" {
			t.Errorf("got %q, %v", got, err)
		}
		err = next.Close()
		<-nextDone
		return err
	})
}

// Whoever moves one of many sockets looks at those of its port, and none is noted any more when it is closed.
func TestSocketsAreFoundByTheirPort(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		var open []*generation
		for _, address := range []string{"127.0.0.1:%d", "127.0.0.2:%d", "gate+udp/127.0.0.1:%d"} {
			g, err := tryListen(config(t), t, fmt.Sprintf(address, port))
			if err != nil {
				return err
			}
			open = append(open, g)
		}
		all := &generation{endpoint: endpoint{Network: open[0].Network, addr: netip.AddrPortFrom(netip.Addr{}, uint16(port))}}
		if others := besides(all); len(others) != 2 {
			t.Errorf("%d sockets overlap all addresses, want 2", len(others))
		}
		if others := besides(open[0]); len(others) != 0 {
			t.Errorf("%d sockets overlap one address", len(others))
		}
		for _, g := range open {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		ports.mu.Lock()
		defer ports.mu.Unlock()
		for _, transport := range []string{"tcp", "udp"} {
			if left := ports.all[portKey{transport, uint16(port)}]; len(left) > 0 {
				t.Errorf("%d sockets are still noted", len(left))
			}
		}
		return nil
	})
}
