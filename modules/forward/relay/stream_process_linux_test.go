package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inChild runs the test that calls it again, in a process of its own that it may harm. It returns true
// there, and here how that has ended.
func inChild(t *testing.T) (child bool, output string, err error) {
	t.Helper()
	const key = "RELAY_TEST_IN_CHILD"
	if os.Getenv(key) == t.Name() {
		return true, "", nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), key+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("the child hangs: %s", out)
	}
	return false, string(out), err
}

// inChildWithFewDescriptors is inChild for a test that runs out of descriptors and succeeds.
func inChildWithFewDescriptors(t *testing.T) (child bool) {
	t.Helper()
	child, output, err := inChild(t)
	if err != nil {
		t.Errorf("%v: %s", err, output)
	}
	if child {
		lowLimit(t)
	}
	return child
}

// poison is an error that can't be asked whether it is a timeout.
type poison struct{ error }

func (poison) Timeout() bool { panic("poison") }

// A panic in a loop would otherwise leave all its sessions hanging. It ends the process and names the
// session that was served.
func TestPanicInALoopNamesTheSession(t *testing.T) {
	t.Parallel()
	child, output, err := inChild(t)
	if child {
		loopPairs[0].open(t).exchange(1) // another session, which is not to blame
		s := loopPairs[0].start(t, func(context.Context, error) (net.Addr, error) {
			return nil, poison{errNoMore}
		}, func(c *Config) { c.Name = sessionName("the guilty one") })
		s.result()
		return
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("the child ended with %v, want a crash", err)
	}
	for _, want := range []string{"panic: poison", "relay: session the guilty one: poison", "relay.(*loop).run"} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if t.Failed() {
		t.Log(output)
	}
}

// exhaust takes all descriptors that the process may have, but for spare of them.
func exhaust(t testing.TB, spare int) (relent func()) {
	t.Helper()
	var taken []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, fd)
	}
	relent = func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
		taken = nil
	}
	t.Cleanup(relent)
	for _, fd := range taken[:spare] {
		unix.Close(fd)
	}
	taken = taken[spare:]
	return relent
}

// lowLimit makes the limit of descriptors one that is soon reached.
func lowLimit(t testing.TB) {
	t.Helper()
	limit := syscall.Rlimit{Cur: 256, Max: 256}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

// Where there is no descriptor for the connection to the upstream, others end all the time. It is no
// reason to turn a client away.
func TestShortageOfDescriptors(t *testing.T) {
	t.Parallel()
	if !inChildWithFewDescriptors(t) {
		return
	}
	for _, p := range engines {
		t.Run(p.name+"/passes", func(t *testing.T) { shortagePasses(t, p) })
		t.Run(p.name+"/lasts", func(t *testing.T) { shortageLasts(t, p) })
		t.Run(p.name+"/of a rival passes", func(t *testing.T) { rivalWithoutDescriptor(t, p, true) })
		t.Run(p.name+"/of a rival passes late", func(t *testing.T) { rivalWithoutDescriptor(t, p, false) })
		t.Run(p.name+"/is closed", func(t *testing.T) { shortageIsClosed(t, p) })
		t.Run(p.name+"/of pipes", func(t *testing.T) { shortageOfPipes(t, p) })
	}
}

// prepareShort makes a relay that will find no descriptor.
func prepareShort(t *testing.T, p pair, next func(context.Context, error) (net.Addr, error), l Limits) (s *session, relent func()) {
	t.Helper()
	t.Run("warm up", func(t *testing.T) { p.open(t).exchange(1) }) // loops need descriptors
	s = p.prepare(t, next, limits(l))
	spare := 0
	if p.loop {
		spare = 1 // for the copy that the test's Detach makes; it closes the original
	}
	relent = exhaust(t, spare)
	if p.loop {
		detached := &early{}
		detached.fd, _ = s.relay.cfg.Client.(Detacher).Detach()
		s.relay.cfg.Client = detached
		exhaust(t, 0)
	}
	return s, relent
}

// early was detached before.
type early struct {
	net.Conn
	fd int
}

func (e *early) Detach() (fd int, ok bool) { return e.fd, true }

func shortagePasses(t *testing.T, p pair) {
	for name, connect := range map[string]time.Duration{"limit": patience, "no limit": 0} {
		t.Run(name, func(t *testing.T) {
			ln := p.listen(t)
			var mu sync.Mutex // calls are made by the relay's goroutines
			var calls []error
			next := only(ln.Addr())
			s, relent := prepareShort(t, p, func(ctx context.Context, failed error) (net.Addr, error) {
				mu.Lock()
				calls = append(calls, failed)
				mu.Unlock()
				return next(ctx, failed)
			}, Limits{Connect: connect})
			s.run()
			select {
			case r := <-s.ended:
				t.Fatalf("did not wait: %v", r.Err)
			case <-time.After(200 * time.Millisecond):
			}
			relent()
			s.acceptFrom(ln)
			s.exchange(10)
			mu.Lock()
			defer mu.Unlock()
			if len(calls) != 1 {
				t.Errorf("attempts that failed: %v", calls[1:])
			}
		})
	}
}

func shortageLasts(t *testing.T, p pair) {
	s, _ := prepareShort(t, p, only(closedAddr(t)), Limits{Connect: 200 * time.Millisecond})
	s.run()
	if r := s.want(ConnectFailed); !errors.Is(r.Err, syscall.EMFILE) {
		t.Errorf("error: %v", r.Err)
	}
	s.wantReset(s.client)
}

func shortageIsClosed(t *testing.T, p pair) {
	s, _ := prepareShort(t, p, only(closedAddr(t)), Limits{Connect: time.Hour})
	s.run()
	s.relay.Close(adminClosed)
	s.want(adminClosed)
	s.wantEOF(s.client)
}

// Without a pipe bulk goes through buffers.
func shortageOfPipes(t *testing.T, p pair) {
	s := p.open(t)
	for idlePipes.Get() != nil { // their finalizers close them
	}
	exhaust(t, 0)
	s.oneWay(s.client, s.upstream, 8<<20)
	s.oneWay(s.upstream, s.client, 8<<20)
	if spliced := s.relay.Stats().Spliced; spliced != 0 {
		t.Errorf("%d bytes were spliced", spliced)
	}
}

// There is a descriptor for the first attempt only, which fails. The second address is tried as soon as there is another one: while
// the first attempt is under way, or after it.
func rivalWithoutDescriptor(t *testing.T, p pair, early bool) {
	silent, _ := deaf(t)
	ln := p.listen(t)
	r := newRace(t, silent, ln.Addr())
	asked := make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	s := p.start(t, r.next, r.config, limits(Limits{Connect: 8 * raceDelay}), func(c *Config) {
		c.Another = func(failed error) net.Addr {
			defer once()
			return r.another(failed)
		}
	})
	eventually(t, "the first attempt", func() bool { return r.sockets.count() == 1 })
	relent := exhaust(t, 0)
	<-asked
	attempts := 1
	if !early {
		attempts = 2
		eventually(t, "the end of the first attempt", func() bool { // which leaves its descriptor
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.failed) == 1
		})
	}
	relent()
	s.acceptFrom(ln)
	s.exchange(10)
	if all := r.attempts.await(t, attempts); all[attempts-1].err != nil || attempts == 2 && connectReason(all[0].err) != ConnectTimeout {
		t.Errorf("attempts: %v", all)
	}
}
