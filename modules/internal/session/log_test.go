package session

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zapcore"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

func TestAccessLogEntry(t *testing.T) {
	t.Parallel()
	sc, logs, _ := newScope(t, 0, 0)
	s, m := begin(t, sc), newMover()
	s.Start = s.Start.Add(-time.Minute)
	m.up.Store(1 << 40)
	m.down.Store(2)
	s.SetMover(m)
	s.SetUpstream("name:9000", tcpAddr("10.0.0.1:9000"), nil)
	s.End(End{Connect: time.Second, Connected: true, Status: StatusDone, Reason: "client_fin"})

	entry := logs.All()[0]
	if entry.Level != zapcore.InfoLevel || entry.Message != "session" {
		t.Errorf("level %v, message %q", entry.Level, entry.Message)
	}
	var names []string
	for _, field := range entry.Context {
		names = append(names, field.Key)
	}
	if want := []string{
		"session_id", "network", "listener", "client_ip", "client_port", "upstream", "bytes_up", "bytes_down",
		"duration", "connect_duration", "status", "reason",
	}; !slices.Equal(names, want) {
		t.Errorf("got  %v\nwant %v", names, want)
	}
	fields := entry.ContextMap()
	if duration := fields["duration"].(time.Duration); duration < time.Minute || duration > 2*time.Minute {
		t.Errorf("duration is %v", duration)
	}
	delete(fields, "duration")
	if want := (map[string]any{
		"session_id": s.ID.String(), "network": "tcp", "listener": s.Listener, "client_ip": "192.0.2.1", "client_port": uint16(1),
		"upstream": "10.0.0.1:9000", "bytes_up": int64(1 << 40), "bytes_down": int64(2),
		"connect_duration": time.Second, "status": int64(200), "reason": "client_fin",
	}); !reflect.DeepEqual(fields, want) {
		t.Errorf("got  %v\nwant %v", fields, want)
	}
}

func TestAccessLogOfWhatIsMissing(t *testing.T) {
	t.Parallel()
	sc, logs, _ := newScope(t, 0, 0)

	unix := Begin(wrap(conn{nil, &net.UnixAddr{Net: "unix", Name: "/run/s"}, &net.UnixAddr{Net: "unix"}}), sc)
	unix.End(End{Status: StatusInternal})
	fields := logs.TakeAll()[0].ContextMap()
	for name, want := range map[string]any{
		"network": "unix", "listener": "/run/s", "upstream": "", "bytes_up": int64(0), "bytes_down": int64(0),
		"client_ip": nil, "client_port": nil, "error": nil,
	} {
		if fields[name] != want {
			t.Errorf("without anything: %s is %v, want %v", name, fields[name], want)
		}
	}

	unresolved := begin(t, sc)
	unresolved.SetUpstream("before:1", tcpAddr("10.0.0.1:1"), nil)
	unresolved.SetUpstream("unknown.example:9000", nil, nil)
	unresolved.End(End{Status: StatusNoUpstream, Reason: "connect_failed", Err: errDial})
	fields = logs.TakeAll()[0].ContextMap()
	for name, want := range map[string]any{
		"upstream": "unknown.example:9000", "status": int64(502), "reason": "connect_failed", "error": errDial.Error(),
	} {
		if fields[name] != want {
			t.Errorf("not resolved: %s is %v, want %v", name, fields[name], want)
		}
	}
}

// A handler of a config, as far as this package sees one.
type testApp struct {
	FailsToStart bool `json:"fails_to_start,omitempty"`

	scopes   [2]*Scope // of two handlers
	registry *prometheus.Registry
}

var lastApp atomic.Pointer[testApp]

func init() { caddy.RegisterModule(new(testApp)) }

func (*testApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "session_test", New: func() caddy.Module { return new(testApp) }}
}

func (a *testApp) Provision(ctx caddy.Context) (err error) {
	a.registry = ctx.GetMetricsRegistry()
	for i := range a.scopes {
		if a.scopes[i], err = NewScope(ctx, time.Second, 0); err != nil {
			return err
		}
	}
	lastApp.Store(a)
	return nil
}

func (a *testApp) Start() error {
	if a.FailsToStart {
		return errors.New("told to")
	}
	return nil
}

func (a *testApp) Stop() error { return nil }

func (a *testApp) Cleanup() error {
	for _, sc := range a.scopes {
		sc.Replaced()
	}
	return nil
}

// load makes Caddy run a config that logs into the file, and returns its handlers. Tests that use it are not
// parallel: there is one running config.
func load(t *testing.T, file, app string) (*testApp, error) {
	t.Helper()
	// Without "roll" the writer has no goroutine.
	err := caddy.Load(fmt.Appendf(nil, `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {
			"default": {"writer": {"output": "discard"}},
			"sessions": {"include": ["layer4.log.access"], "encoder": {"format": "json"},
				"writer": {"output": "file", "filename": %q, "roll": false}}
		}},
		"apps": {"session_test": %s}
	}`, file, app), true)
	return lastApp.Load(), err
}

func mustLoad(t *testing.T, file string) *testApp {
	t.Helper()
	app, err := load(t, file, "{}")
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// restore puts the quiet config back.
func restore(t *testing.T) {
	t.Cleanup(func() {
		if err := caddy.Load([]byte(quiet), true); err != nil {
			t.Error(err)
		}
	})
}

// entries returns the entries of a log file.
func entries(t *testing.T, file string) (all []map[string]any) {
	t.Helper()
	logqueue.Flush(10 * time.Second)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var entry map[string]any
		if err := json.Unmarshal(lines.Bytes(), &entry); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		all = append(all, entry)
	}
	return all
}

// What an operator reads: the logger's name, and durations in seconds.
func TestAccessLogFile(t *testing.T) {
	restore(t)
	file := filepath.Join(t.TempDir(), "sessions.log")
	s := begin(t, mustLoad(t, file).scopes[0])
	s.Start = s.Start.Add(-90 * time.Second)
	s.SetUpstream("name:1", tcpAddr("10.0.0.1:1"), nil)
	s.End(End{Connect: 250 * time.Millisecond, Status: StatusConnectTimeout, Reason: "connect_timeout", Err: errDial})
	all := entries(t, file)
	if len(all) != 1 {
		t.Fatalf("%d entries", len(all))
	}
	entry := all[0]
	if duration, ok := entry["duration"].(float64); !ok || duration < 90 || duration > 180 {
		t.Errorf("duration is %v", entry["duration"])
	}
	if _, ok := entry["ts"].(float64); !ok {
		t.Errorf("ts is %v", entry["ts"])
	}
	delete(entry, "duration")
	delete(entry, "ts")
	if want := (map[string]any{
		"level": "info", "logger": "layer4.log.access", "msg": "session",
		"session_id": s.ID.String(), "network": "tcp", "listener": s.Listener, "client_ip": "192.0.2.1", "client_port": 1.0,
		"upstream": "10.0.0.1:1", "bytes_up": 0.0, "bytes_down": 0.0, "connect_duration": 0.25,
		"status": 504.0, "reason": "connect_timeout", "error": errDial.Error(),
	}); !maps.Equal(entry, want) {
		t.Errorf("got  %v\nwant %v", entry, want)
	}
}

// A session's entry goes where the running config wants it, also at the end of the process.
func TestAccessLogOfTheRunningConfig(t *testing.T) {
	restore(t)
	dir := t.TempDir()
	first, second, rejected := filepath.Join(dir, "first"), filepath.Join(dir, "second"), filepath.Join(dir, "rejected")
	mustHave := func(file string, want int) {
		t.Helper()
		if got := len(entries(t, file)); got != want {
			t.Errorf("%s has %d entries, want %d", filepath.Base(file), got, want)
		}
	}
	old := mustLoad(t, first)
	var sessions []*Session
	for range 3 {
		sessions = append(sessions, begin(t, old.scopes[0]))
	}
	begin(t, old.scopes[0]).End(End{})
	mustHave(first, 1)

	current := mustLoad(t, second)
	sessions[0].End(End{})
	mustHave(first, 1)
	mustHave(second, 1)

	failed, err := load(t, rejected, `{"fails_to_start": true}`)
	if err == nil {
		t.Fatal("not rejected")
	}
	sessions[1].End(End{})
	begin(t, current.scopes[1]).End(End{})
	mustHave(second, 3)

	last := begin(t, current.scopes[0])
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	sessions[2].End(End{})
	last.End(End{})
	mustHave(second, 5)
	mustHave(first, 1)
	mustHave(rejected, 0)
	if failed == current {
		t.Error("the rejected config was not provisioned")
	}
}

// A hundred reloads with two handlers each neither collide nor begin anew, and a session that outlives them
// all goes on counting.
func TestMetricsOutliveReloads(t *testing.T) {
	restore(t)
	const reloads = 100
	listener := newLabel()
	file := filepath.Join(t.TempDir(), "sessions.log")
	app := mustLoad(t, file)
	lasting, m := beginOn(t, app.scopes[0], listener), newMover()
	lasting.SetMover(m)
	lasting.SetUpstream("reloads:2", nil, nil)
	for i := 1; i <= reloads; i++ {
		app = mustLoad(t, file)
		for _, sc := range app.scopes {
			beginOn(t, sc, listener).End(End{Status: StatusDone})
		}
		m.up.Add(10)
		labels := map[string]string{"listener": listener}
		for name, want := range map[string]int{"sessions_total": 2 * i, "sessions_active": 1, "session_duration_seconds": 2 * i, "bytes_total": 10 * i} {
			if got, _ := value(t, app.registry, "caddy_portgate_"+name, labels); got != float64(want) {
				t.Fatalf("after %d reloads: %s is %v, want %v", i, name, got, want)
			}
		}
	}
	lasting.End(End{Status: StatusDone})
	if n := len(entries(t, file)); n != 2*reloads+1 {
		t.Errorf("%d entries", n)
	}
}
