package forward

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// A config runs throughout, as in a process that is not being stopped. Its access log is kept in memory.
func TestMain(m *testing.M) {
	os.Setenv("PORTGATE_TEST_HOST", "127.0.0.1")
	var err error
	if storageRoot, err = os.MkdirTemp("", "forward"); err != nil {
		panic(err)
	}
	if err := load(nil); err != nil {
		panic(err)
	}
	code := m.Run()
	// The event loops stay, once there are some.
	err = goleak.Find(goleak.IgnoreAnyFunction("github.com/portgate/caddy-portgate/modules/forward/relay.(*loop).run"),
		goleak.IgnoreAnyFunction("github.com/portgate/caddy-portgate/modules/forward/relay.followAddresses"))
	if err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.RemoveAll(storageRoot)
	os.Exit(code)
}

// storageRoot is where the storage of all configs is.
var storageRoot string

type object map[string]any

// load makes Caddy run a config with these apps. Tests that use it are not parallel: there is one running config.
func load(apps object) error {
	config, err := json.Marshal(object{
		"storage": object{"module": "file_system", "root": storageRoot},
		"admin":   object{"disabled": true, "config": object{"persist": false}},
		"logging": object{"logs": object{
			"default":  object{"writer": object{"output": "discard"}},
			"sessions": object{"include": []string{"layer4.log.access"}, "writer": object{"output": "test_memory"}, "encoder": object{"format": "json"}},
		}},
		"apps": apps,
	})
	if err != nil {
		return err
	}
	return caddy.Load(config, true)
}

// mustLoad loads a layer4 app with these servers for the rest of the test.
func mustLoad(t *testing.T, servers object) {
	t.Helper()
	t.Cleanup(func() {
		if err := load(nil); err != nil {
			t.Error(err)
		}
	})
	if err := load(object{"layer4": object{"servers": servers}}); err != nil {
		t.Fatal(err)
	}
}

// server is a server of the layer4 app with one route.
func server(handler any, listen ...string) object {
	return object{"listen": listen, "routes": []object{{"handle": []any{handler}}}}
}

// to is a forward handler with these upstreams and options.
func to(upstreams []string, options ...object) object {
	h := object{"handler": "forward", "to": upstreams}
	for _, o := range options {
		for name, value := range o {
			h[name] = value
		}
	}
	return h
}

var lastHost atomic.Uint32

// newHost returns an address of this machine on which all ports are free: no other test has it, also where several processes
// test at the same time, and clients have ports of 127.0.0.1.
func newHost() string {
	n := lastHost.Add(1)
	return netip.AddrFrom4([4]byte{127, byte(2 + os.Getpid()%250), byte(n >> 8), byte(n)}).String()
}

// provision makes a handler of a config of its own. unload replaces that config.
func provision(t testing.TB, config string) (h *Handler, ctx caddy.Context, unload func()) {
	t.Helper()
	h, ctx, unload, err := tryProvision(t, config)
	if err != nil {
		t.Fatal(err)
	}
	return h, ctx, unload
}

func tryProvision(t testing.TB, config string) (h *Handler, ctx caddy.Context, unload func(), err error) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.ActiveContext())
	unload = sync.OnceFunc(cancel)
	t.Cleanup(unload)
	module, err := ctx.LoadModuleByID("layer4.handlers.forward", json.RawMessage(config))
	if err != nil {
		return nil, ctx, unload, err
	}
	return module.(*Handler), ctx, unload, nil
}

// forwardTo provisions a handler with default options.
func forwardTo(t testing.TB, upstreams ...string) *Handler {
	t.Helper()
	config, err := json.Marshal(object{"to": upstreams})
	if err != nil {
		t.Fatal(err)
	}
	h, _, _ := provision(t, string(config))
	return h
}

// handle does with a connection what a layer4 server does. It returns the layer4 connection, for a test that
// looks into it, and what is closed when Handle has returned.
func handle(t testing.TB, h layer4.NextHandler, conn net.Conn, prepare ...func(*layer4.Connection)) (done <-chan struct{}) {
	t.Helper()
	cx := layer4.WrapConnection(conn, nil, zap.NewNop())
	for _, p := range prepare {
		p(cx)
	}
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		if err := h.Handle(cx, nil); err != nil {
			t.Errorf("Handle: %v", err)
		}
		_ = conn.Close()
	}()
	return returned
}

// connect returns both ends of a TCP connection.
func connect(t testing.TB) (client, accepted *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client = dial(t, ln.Addr().String())
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client, conn.(*net.TCPConn)
}

func dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	before := accessLog.mark()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	accessLog.forget(conn.LocalAddr().(*net.TCPAddr).Port, before)
	// Whatever a test waits for on a connection, it does not wait for ever.
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.TCPConn)
}

// serve is an upstream that does this with each connection, until the test ends.
func serve(t testing.TB, network, address string, do func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				do(conn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// echo is an upstream that sends everything back.
func echo(t testing.TB) string {
	t.Helper()
	return serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
}

// named is an upstream that says its name and then sends everything back.
func named(t testing.TB, address, name string) string {
	t.Helper()
	return serve(t, "tcp", address, func(conn net.Conn) {
		_, _ = io.WriteString(conn, name)
		_, _ = io.Copy(conn, conn)
	})
}

// refuses returns an address on which nobody listens.
func refuses() string { return newHost() + ":9" }

// exchange requires that what is sent comes back.
func exchange(t testing.TB, conn net.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(conn, message); err != nil {
		t.Fatal(err)
	}
	read(t, conn, message)
}

func read(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got[:n], err, want)
	}
}

// finish ends a session in order and returns its entry in the access log.
func finish(t testing.TB, client *net.TCPConn) entry {
	t.Helper()
	_ = client.CloseWrite()
	if rest, err := io.ReadAll(client); err != nil || len(rest) > 0 {
		t.Fatalf("got %q, %v", rest, err)
	}
	return logged(t, client)
}

// eventually waits until there is no error any more.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// entry is an entry of the access log.
type entry struct {
	Network         string
	Listener        string
	ClientIP        string `json:"client_ip"`
	ClientPort      int    `json:"client_port"`
	Upstream        string `json:"upstream"`
	BytesUp         int64  `json:"bytes_up"`
	BytesDown       int64  `json:"bytes_down"`
	Duration        float64
	ConnectDuration float64 `json:"connect_duration"`
	Status          int
	Reason          string
	Error           string
	Failed          joined `json:"failed_upstreams"`
}

// joined is a list of strings that can be compared.
type joined string

func (j *joined) UnmarshalJSON(data []byte) error {
	var all []string
	err := json.Unmarshal(data, &all)
	*j = joined(strings.Join(all, " "))
	return err
}

// memory is the access log.
type memory struct {
	mu      sync.Mutex
	entries []numbered
	count   int           // of all entries so far
	written chan struct{} // closed with the next entry
}

// numbered is an entry, and how many there were with it.
type numbered struct {
	entry
	number int
}

var accessLog = memory{written: make(chan struct{})}

func init() { caddy.RegisterModule(new(memory)) }

func (*memory) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.test_memory", New: func() caddy.Module { return new(memory) }}
}

func (*memory) String() string                      { return "memory" }
func (*memory) WriterKey() string                   { return "memory" }
func (*memory) OpenWriter() (io.WriteCloser, error) { return &accessLog, nil }
func (*memory) Close() error                        { return nil }

func (m *memory) Write(b []byte) (int, error) {
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		panic(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	m.entries = append(m.entries, numbered{e, m.count})
	close(m.written)
	m.written = make(chan struct{})
	return len(b), nil
}

// mark returns the number of the last entry.
func (m *memory) mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// forget removes what is left of earlier clients that had the port of a new one.
func (m *memory) forget(port, until int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = slices.DeleteFunc(m.entries, func(e numbered) bool { return e.ClientPort == port && e.number <= until })
}

// take removes the entry that fits.
func (m *memory) take(fits func(entry) bool) (found entry, ok bool, next <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, e := range m.entries {
		if fits(e.entry) {
			m.entries = append(m.entries[:i], m.entries[i+1:]...)
			return e.entry, true, nil
		}
	}
	return entry{}, false, m.written
}

// wait returns the entry that fits as soon as there is one.
func (m *memory) wait(t testing.TB, fits func(entry) bool) entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		e, ok, next := m.take(fits)
		if ok {
			return e
		}
		select {
		case <-next:
		case <-ctx.Done():
			t.Fatal("no entry in the access log")
		}
	}
}

// logged returns the entry of a client's session as soon as it has ended.
func logged(t testing.TB, client net.Conn) entry {
	t.Helper()
	return accessLog.wait(t, func(e entry) bool { return e.ClientPort == client.LocalAddr().(*net.TCPAddr).Port })
}
