package session

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A config runs throughout, as it does in a process that is not being stopped. It logs nothing.
func TestMain(m *testing.M) {
	if err := caddy.Load([]byte(quiet), true); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

const quiet = `{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {"logs": {"default": {"writer": {"output": "discard"}}}}}`

// newScope returns a scope of a config of its own, what it logs, and how to end the config.
func newScope(t testing.TB, grace, drain time.Duration) (*Scope, *observer.ObservedLogs, context.CancelFunc) {
	t.Helper()
	ctx, unload := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(unload)
	sc, err := NewScope(ctx, grace, drain)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	sc.log = zap.New(core)
	return sc, logs, unload
}

// conn is a connection that has addresses and nothing else.
type conn struct {
	net.Conn
	local, remote net.Addr
}

func (c conn) LocalAddr() net.Addr  { return c.local }
func (c conn) RemoteAddr() net.Addr { return c.remote }

// gateConn knows the address of its listener.
type gateConn struct {
	conn
	listener string
}

func (c gateConn) ListenerAddr() string { return c.listener }

func tcpAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

func wrap(c net.Conn) *layer4.Connection { return layer4.WrapConnection(c, nil, zap.NewNop()) }

var lastLabel atomic.Int32

// newLabel returns a listener or an upstream that no other test has: metrics outlive them all.
func newLabel() string { return fmt.Sprintf("test:%d", lastLabel.Add(1)) }

// begin begins a session on a listener of its own.
func begin(t testing.TB, sc *Scope) *Session {
	t.Helper()
	return beginOn(t, sc, newLabel())
}

func beginOn(t testing.TB, sc *Scope, listener string) *Session {
	t.Helper()
	s := Begin(wrap(gateConn{conn{nil, tcpAddr("127.0.0.1:80"), tcpAddr("192.0.2.1:1")}, listener}), sc)
	t.Cleanup(func() { s.End(End{}) })
	return s
}

// mover is a relay of which the test says what it has done.
type mover struct {
	up, down atomic.Int64
	active   atomic.Pointer[time.Time]
	closed   chan string
}

func newMover() *mover {
	m := &mover{closed: make(chan string, 16)}
	m.touch()
	return m
}

func (m *mover) touch()                  { now := time.Now(); m.active.Store(&now) }
func (m *mover) Close(reason string)     { m.closed <- reason }
func (m *mover) LastActive() time.Time   { return *m.active.Load() }
func (m *mover) Moved() (up, down int64) { return m.up.Load(), m.down.Load() }

// closedWith returns why m was closed, "" if it was not.
func (m *mover) closedWith() string {
	select {
	case reason := <-m.closed:
		return reason
	default:
		return ""
	}
}

func isLiving(s *Session) bool {
	return slices.Contains(living.list(), s)
}

// value returns a metric as a scrape of the registry finds it: the sum of all samples with these labels, and
// their number. Of a histogram it is the count.
func value(t testing.TB, registry prometheus.Gatherer, name string, labels map[string]string) (sum float64, samples int) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	metrics:
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if want, ok := labels[label.GetName()]; ok && want != label.GetValue() {
					continue metrics
				}
			}
			samples++
			sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return sum, samples
}

// newRegistry is the registry of one more config.
func newRegistry(t testing.TB) *prometheus.Registry {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := collectors.register(registry); err != nil {
		t.Fatal(err)
	}
	return registry
}
