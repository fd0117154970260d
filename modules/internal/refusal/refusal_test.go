package refusal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/goleak"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// A config runs throughout, as in a process that is not being stopped. It logs nothing.
func TestMain(m *testing.M) {
	config, _ := json.Marshal(map[string]any{
		"admin":   map[string]any{"disabled": true, "config": map[string]any{"persist": false}},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "discard"}}}},
	})
	if err := caddy.Load(config, true); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func scope(t testing.TB) *session.Scope {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.ActiveContext())
	t.Cleanup(cancel)
	sc, err := session.NewScope(ctx, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// patience bounds the wait for what comes at once, on a machine that may be busy.
const patience = 20 * time.Second

// pair returns the two ends of a TCP connection.
func pair(t testing.TB) (accepted, dialed *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return other.(*net.TCPConn), conn.(*net.TCPConn)
}

// do refuses a connection.
func do(sc *session.Scope, way Way, network string, conn net.Conn) (*session.Session, *Held) {
	a := &session.Arrival{Conn: conn, Network: network, Listener: "test", Client: netip.MustParseAddrPort("192.0.2.1:1")}
	s := a.Begin(sc)
	return s, Do(way, a, s, session.End{Status: session.StatusDenied, Reason: session.ReasonDenied})
}

// A client that is dropped hears nothing: no answer and no end.
func TestDrop(t *testing.T) {
	t.Parallel()
	if !CanDrop() {
		t.Fatal("this test needs the capability CAP_NET_ADMIN: run it as root")
	}
	accepted, dialed := pair(t)
	do(scope(t), Way{Action: Drop}, "tcp", accepted)
	dialed.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := dialed.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v: want nothing", n, err)
	}
	if _, err := accepted.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
}

// A tarpit lasts its time, or until its session is closed, as when the process stops. One that is full closes at once.
func TestTarpit(t *testing.T) {
	before := maxHeld
	maxHeld = 2
	defer func() { maxHeld = before }()
	sc := scope(t)
	start := time.Now()
	const short = 200 * time.Millisecond
	var sessions []*session.Session
	var clients []*net.TCPConn
	for _, duration := range []time.Duration{time.Hour, short, time.Hour} {
		accepted, dialed := pair(t)
		s, _ := do(sc, Way{Action: Tarpit, Duration: duration}, "tcp", accepted)
		sessions, clients = append(sessions, s), append(clients, dialed)
	}
	ends := func(what string, client int) {
		t.Helper()
		if _, err := clients[client].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v, want EOF", what, err)
		}
	}
	ends("the one too many", 2)
	ends("the short one", 1)
	if took := time.Since(start); took < short {
		t.Errorf("the short one was held for %v, want %v", took, short)
	}
	sessions[0].Close(session.ReasonShutdown)
	ends("the one that was closed", 0)
	for deadline := time.Now().Add(patience); heldNow.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d are still held", heldNow.Load())
		}
	}
}

// packets is a UDP session as its listener gives it.
type packets struct {
	net.Conn
	attached, written atomic.Int64
	closed            chan struct{}
	once              sync.Once
}

func (p *packets) Attach(func([]byte) bool, func(string)) bool { p.attached.Add(1); return true }
func (p *packets) Write(b []byte) (int, error)                 { p.written.Add(int64(len(b))); return len(b), nil }

func (p *packets) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// The datagrams of a client that is refused are thrown away for a while, and then it is looked at again. Where there are
// too many such clients, it is looked at each time.
func TestDatagrams(t *testing.T) {
	sc := scope(t)
	refuse := func(action Action) *packets {
		p := &packets{closed: make(chan struct{})}
		do(sc, Way{Action: action, Text: []byte("no"), Duration: time.Hour}, "udp", p)
		return p
	}
	start := time.Now()
	first := refuse(Respond)
	if first.attached.Load() != 1 || first.written.Load() != 2 {
		t.Errorf("attached %d times, %d bytes written", first.attached.Load(), first.written.Load())
	}
	for n := range maxMuted - 1 {
		if p := refuse([]Action{Close, Reset, Drop, Tarpit}[n%4]); p.written.Load() != 0 {
			t.Fatalf("%d bytes written", p.written.Load())
		}
	}
	beyond := refuse(Close)
	select {
	case <-beyond.closed:
	default:
		t.Error("the one too many is not closed at once")
	}
	if beyond.attached.Load() != 0 {
		t.Error("the one too many is kept")
	}
	<-first.closed
	if took := time.Since(start); took < muteTime {
		t.Errorf("looked at again after %v, want %v", took, muteTime)
	}
	for deadline := time.Now().Add(patience); mutedNow.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d are still muted", mutedNow.Load())
		}
	}
}
