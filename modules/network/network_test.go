package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config returns the context of a config, which tells it from others.
func config(t *testing.T) context.Context {
	t.Helper()
	ctx, unload := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(unload)
	return ctx
}

// listenOn opens a listener as Caddy does.
func listenOn(ctx context.Context, t testing.TB, address string) *generation {
	t.Helper()
	g, err := tryListen(ctx, t, address)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// tryListen takes an address for gate+tcp, or one with a network.
func tryListen(ctx context.Context, t testing.TB, address string) (*generation, error) {
	t.Helper()
	return listenWith(ctx, t, address, net.ListenConfig{})
}

func listenWith(ctx context.Context, t testing.TB, address string, cfg net.ListenConfig) (*generation, error) {
	t.Helper()
	if !strings.Contains(address, "/") {
		address = "gate+tcp/" + address
	}
	addr, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := addr.Listen(ctx, 0, cfg)
	if err != nil {
		return nil, err
	}
	g := ln.(*generation)
	t.Cleanup(func() { _ = g.Close() })
	return g, nil
}

var lastHost atomic.Uint32

// freeAddress returns an address that nobody listens on. Its host is new each time, and no client's: a
// client of a test that runs in parallel gets a port of 127.0.0.1.
func freeAddress(t *testing.T) string {
	t.Helper()
	n := lastHost.Add(1)
	ln, err := net.Listen("tcp", netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)}).String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

// onFreePort calls listen with a port that was free on all addresses, and again with another one if
// somebody has taken it meanwhile.
func onFreePort(t *testing.T, listen func(port int) error) {
	t.Helper()
	for range 20 {
		free, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		_ = free.Close()
		err = listen(free.Addr().(*net.TCPAddr).Port)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("no port stays free")
}

// serve answers every connection with the name, until the listener is closed.
func serve(t *testing.T, ln net.Listener, name string, accepted ...func()) (done <-chan struct{}) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			conn, err := ln.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s: %v", name, err)
				}
				return
			}
			for _, check := range accepted {
				check()
			}
			if _, err := io.WriteString(conn, name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			_ = conn.Close()
		}
	}()
	return stopped
}

// ask returns the name of the server that answers.
func ask(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func expectAnswer(t *testing.T, address, want string) {
	t.Helper()
	if got, err := ask(address); err != nil || got != want {
		t.Fatalf("%s: got %q, %v, want %q", address, got, err, want)
	}
}

// TestHandoverUnderLoad replaces the generation 100 times. No client may fail, and each must be answered by
// the oldest generation that is alive.
func TestHandoverUnderLoad(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)

	// Generation n is closed between closing = n and closed = n.
	var closing, closed, answered atomic.Int64
	closing.Store(-1)
	closed.Store(-1)
	start := func(number int64) (g *generation, done <-chan struct{}) {
		g = listenOn(config(t), t, address)
		accepted := func() {
			if oldest := closing.Load() + 1; number > oldest {
				t.Errorf("generation %d accepted while %d was alive", number, oldest)
			}
		}
		return g, serve(t, g, strconv.FormatInt(number, 10), accepted)
	}

	var clients sync.WaitGroup
	stop := make(chan struct{})
	client := func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			gone := closed.Load()
			answer, err := ask(address)
			if err != nil {
				t.Error(err)
				return
			}
			if number, err := strconv.ParseInt(answer, 10, 64); err != nil || number <= gone {
				t.Errorf("answered by %q, after %d was closed", answer, gone)
			}
			answered.Add(1)
		}
	}

	living, done := start(0)
	for range 8 {
		clients.Go(client)
	}
	for number := range int64(100) {
		next, nextDone := start(number + 1)
		for before := answered.Load(); answered.Load() < before+30 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		closing.Store(number)
		if err := living.Close(); err != nil {
			t.Error(err)
		}
		closed.Store(number)
		<-done
		living, done = next, nextDone
	}
	close(stop)
	clients.Wait()
	if n := answered.Load(); n < 3000 {
		t.Errorf("%d connections, expected thousands", n)
	}
}

func TestQueueOutlivesGeneration(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	first := listenOn(config(t), t, address)
	for range 10 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	second := listenOn(config(t), t, address)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		conn, err := second.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
}

func TestRejectedGenerationAcceptsNothing(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	running := serve(t, listenOn(config(t), t, address), "running")
	for range 20 {
		ctx, reject := context.WithCancel(t.Context())
		rejected := serve(t, listenOn(ctx, t, address), "rejected")
		for range 10 {
			expectAnswer(t, address, "running")
		}
		reject()
		<-rejected
		expectAnswer(t, address, "running")
	}
	select {
	case <-running:
		t.Error("the running generation ended")
	default:
	}
}

func TestGenerationsOutOfOrder(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	var generations []*generation
	for number := range 4 {
		g := listenOn(config(t), t, address)
		serve(t, g, strconv.Itoa(number))
		generations = append(generations, g)
	}
	expectAnswer(t, address, "0")
	for _, step := range []struct {
		closed int
		want   string
	}{{2, "0"}, {0, "1"}, {1, "3"}} {
		if err := generations[step.closed].Close(); err != nil {
			t.Fatal(err)
		}
		expectAnswer(t, address, step.want)
	}
	if err := generations[3].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the last close: %v", err)
	}
}

func TestCloseEndsAccept(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	oldest := listenOn(config(t), t, address)
	waiting := listenOn(config(t), t, address)
	var accepts sync.WaitGroup
	for _, g := range []*generation{waiting, oldest} {
		for range 3 {
			accepts.Go(func() {
				if conn, err := g.Accept(); conn != nil || !errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v, %v", conn, err)
				}
			})
		}
	}
	for range 2 {
		for _, g := range []*generation{waiting, oldest} {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	accepts.Wait()
	if conn, err := oldest.Accept(); conn != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the close: %v, %v", conn, err)
	}
}

func TestSameAddressTwice(t *testing.T) {
	t.Parallel()
	for _, hosts := range []struct{ first, second string }{
		{"127.0.0.1", "127.0.0.1"},
		{"localhost", "LocalHost"},
		{"", "[::0]"},
		{"0.0.0.0", "0.0.0.0"},
		{"[::]", ""},
		{"[::1]", "[0:0::1]"},
	} {
		onFreePort(t, func(port int) error {
			first, second := fmt.Sprintf("%s:%d", hosts.first, port), fmt.Sprintf("%s:%d", hosts.second, port)
			ctx := config(t)
			g, err := tryListen(ctx, t, first)
			if err != nil {
				return err
			}
			_, err = tryListen(ctx, t, second)
			want := fmt.Sprintf("listening on %q: this config listens there already, as %q: expected each address once", second, first)
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			other := listenOn(config(t), t, second)
			return errors.Join(g.Close(), other.Close())
		})
	}
}

func TestPortZeroIsNotShared(t *testing.T) {
	t.Parallel()
	ctx := config(t)
	first, second := listenOn(ctx, t, "127.0.0.1:0"), listenOn(ctx, t, "127.0.0.1:0")
	serve(t, first, "first")
	serve(t, second, "second")
	expectAnswer(t, first.Addr().String(), "first")
	expectAnswer(t, second.Addr().String(), "second")
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	g := listenOn(config(t), t, freeAddress(t))
	if _, err := net.Listen("tcp", g.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second socket: %v", err)
	}

	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	address := other.Addr().String()
	_, err = tryListen(config(t), t, address)
	want := fmt.Sprintf("listening on %q: listen tcp %s: bind: address already in use", address, address)
	if !errors.Is(err, syscall.EADDRINUSE) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "[::1]", "localhost", ""} {
		onFreePort(t, func(port int) error {
			address := fmt.Sprintf("%s:%d", host, port)
			g, err := tryListen(config(t), t, address)
			if err != nil {
				return err
			}
			expectConn(t, g, address)
			return g.Close()
		})
	}
}

func TestPortRange(t *testing.T) {
	t.Parallel()
	last := netip.MustParseAddrPort(freeAddress(t))
	addr, err := caddy.ParseNetworkAddress(fmt.Sprintf("gate+tcp/%s:%d-%d", last.Addr(), last.Port()-2, last.Port()))
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := addr.ListenAll(config(t), net.ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if len(listeners) != 3 {
		t.Errorf("%d listeners", len(listeners))
	}
	for offset, ln := range listeners {
		expectConn(t, ln.(*generation), addr.JoinHostPort(uint(offset)))
	}
}

// expectConn connects to the address at which g listens, and accepts.
func expectConn(t *testing.T, g *generation, address string) {
	t.Helper()
	client, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := server.(*Conn).ListenerAddr(); got != address {
		t.Errorf("accepted on %q, want %q", got, address)
	}
	if err := errors.Join(client.Close(), server.Close()); err != nil {
		t.Error(err)
	}
}

// acceptErrors makes accept fail n times.
func acceptErrors(g *generation, n int, err error, each func()) {
	s := g.socket.(*socket)
	accept := s.accept
	s.accept = func() (*Conn, error) {
		each()
		if n--; n < 0 {
			return accept()
		}
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
	}
}

func TestAcceptErrorsPauseButNeverEnd(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	synctest.Test(t, func(t *testing.T) {
		g := listenOn(config(t), t, address)
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()

		var pauses []time.Duration
		var logged []time.Time
		last := time.Now()
		acceptErrors(g, 40, syscall.EMFILE, func() {
			pauses = append(pauses, time.Since(last))
			last = time.Now()
			if at := g.socket.(*socket).lastLogged; len(logged) == 0 || at != logged[len(logged)-1] {
				logged = append(logged, at)
			}
		})
		accepted, err := g.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = accepted.Close()

		for i, want := range []time.Duration{0, 0, 5, 10, 20, 40, 80, 100, 100} {
			if pauses[i] != want*time.Millisecond {
				t.Errorf("before accept %d: a pause of %v, want %dms", i, pauses[i], want)
			}
		}
		if got := pauses[len(pauses)-1]; got != maxPause {
			t.Errorf("the last pause is %v", got)
		}
		// 3.555 s went by, so beside the zero time there are the logs at 0, 1.055, 2.055 and 3.055 s.
		if len(logged) != 5 {
			t.Errorf("logged at %v", logged)
		}
	})
}

func TestErrorOfOneConnectionDelaysNobody(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	synctest.Test(t, func(t *testing.T) {
		g := listenOn(config(t), t, address)
		start := time.Now()
		for range 3 {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			acceptErrors(g, 1, syscall.ECONNABORTED, func() {})
			accepted, err := g.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Close(), accepted.Close()
		}
		if took := time.Since(start); took != 0 || !g.socket.(*socket).lastLogged.IsZero() {
			t.Errorf("took %v, logged at %v", took, g.socket.(*socket).lastLogged)
		}
	})
}

func TestCloseEndsPause(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	synctest.Test(t, func(t *testing.T) {
		g := listenOn(config(t), t, address)
		next := listenOn(config(t), t, address)
		acceptErrors(g, 10, syscall.ENOBUFS, func() {})
		accepted := make(chan error)
		go func() {
			_, err := g.Accept()
			accepted <- err
		}()
		time.Sleep(200 * time.Millisecond)
		synctest.Wait() // in a pause of 100 ms that began 45 ms ago
		start := time.Now()
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) || time.Since(start) != 0 {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		select {
		case <-next.active:
		default:
			t.Error("the next generation is not active")
		}
	})
}

// TestNothingIsLeft is not parallel, so that no other test opens descriptors meanwhile.
func TestNothingIsLeft(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	warm, err := net.Listen("tcp", "127.0.0.1:0") // opens what the runtime keeps
	if err != nil {
		t.Fatal(err)
	}
	_ = warm.Close()
	before := descriptors()

	address := freeAddress(t)
	for range 50 {
		ctx, unload := context.WithCancel(t.Context())
		old, g := listenOn(config(t), t, address), listenOn(ctx, t, address)
		if _, err := tryListen(ctx, t, address); err == nil {
			t.Fatal("listened twice")
		}
		done := serve(t, g, "new")
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		expectAnswer(t, address, "new")
		unload()
		<-done
		if err := g.Close(); err != nil { // waits for the close that the context has begun
			t.Fatal(err)
		}
	}
	if after := descriptors(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
