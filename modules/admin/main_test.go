package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/goleak"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// A config runs throughout, as in a process that is not being stopped. It logs nothing.
func TestMain(m *testing.M) {
	config := `{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {"logs": {"default": {"writer": {"output": "discard"}}}}}`
	if err := caddy.Load([]byte(config), true); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// newScope returns a scope of a config of its own, and how to end the config.
func newScope(t testing.TB) (scope *session.Scope, unload func()) {
	t.Helper()
	ctx, unload := caddy.NewContext(caddy.ActiveContext())
	t.Cleanup(unload)
	scope, err := session.NewScope(ctx, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return scope, unload
}

// mover is a relay of which the test says what it has done.
type mover struct {
	up, down atomic.Int64
	active   atomic.Pointer[time.Time]
	closed   atomic.Pointer[string]
}

func newMover() *mover {
	m := new(mover)
	m.move(0, 0)
	return m
}

func (m *mover) move(up, down int64) {
	m.up.Add(up)
	m.down.Add(down)
	now := time.Now()
	m.active.Store(&now)
}

func (m *mover) Close(reason string)     { m.closed.Store(&reason) }
func (m *mover) LastActive() time.Time   { return *m.active.Load() }
func (m *mover) Moved() (up, down int64) { return m.up.Load(), m.down.Load() }

// closedWith returns why m was closed, "" if it was not.
func (m *mover) closedWith() string {
	if reason := m.closed.Load(); reason != nil {
		return *reason
	}
	return ""
}

// datagramMover is a relay of datagrams.
type datagramMover struct{ *mover }

func (m datagramMover) Datagrams() (up, down int64)  { return 2, 3 }
func (m datagramMover) Counts() *listeners.Datagrams { return nil }

// refusing is what holds a refused client for a moment.
type refusing struct{ *mover }

func (refusing) Refuses() {}

// living is a session with what moves its bytes.
type living struct {
	*session.Session
	*mover
}

func (l living) id() string { return l.ID.String() }

var lastListener atomic.Int32

// newListener returns a listener that no other test has: the registry is one for all.
func newListener() string { return fmt.Sprintf("test:%d", lastListener.Add(1)) }

// begin begins a session that is forwarded to an upstream until the test is over. age is how long ago its client has connected.
func begin(t testing.TB, scope *session.Scope, network, listener, client, upstream string, age time.Duration) living {
	t.Helper()
	a := session.Arrival{Network: network, Listener: listener}
	if client != "" {
		a.Client = netip.MustParseAddrPort(client)
	}
	if age > 0 {
		a.Since = time.Now().Add(-age)
	}
	l := living{a.Begin(scope), newMover()}
	t.Cleanup(func() { l.End(session.End{Status: session.StatusDone}) })
	if network == "udp" {
		l.SetMover(datagramMover{l.mover})
	} else {
		l.SetMover(l.mover)
	}
	l.SetUpstream("name."+upstream, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(upstream)), nil)
	l.Dialed(time.Millisecond)
	return l
}

// serveMux passes requests to the API by way of a mux like that of Caddy.
func serveMux(t testing.TB) *http.ServeMux {
	mux := http.NewServeMux()
	for _, route := range append(append(new(sessionsAPI).Routes(), new(stateAPI).Routes()...), new(pageAPI).Routes()...) {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			err := route.Handler.ServeHTTP(w, r)
			var failed caddy.APIError
			if errors.As(err, &failed) {
				http.Error(w, failed.Err.Error(), failed.HTTPStatus)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	return mux
}

// request sends a request and returns the answer.
func request(t testing.TB, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	recorder := httptest.NewRecorder()
	serveMux(t).ServeHTTP(recorder, httptest.NewRequest(method, path, nil))
	return recorder
}

// call is request for who wants status and text.
func call(t testing.TB, method, path string) (status int, answer string) {
	t.Helper()
	w := request(t, method, path)
	return w.Code, strings.TrimSpace(w.Body.String())
}

// list returns the sessions that the API has.
func list(t testing.TB, query string) (rows []row) {
	t.Helper()
	status, answer := call(t, "GET", sessionsPath+query)
	if err := json.Unmarshal([]byte(answer), &rows); err != nil || status != 200 {
		t.Fatalf("%s: %d %s: %v", query, status, answer, err)
	}
	return rows
}

func ids(rows []row) (all []string) {
	for _, r := range rows {
		all = append(all, r.ID)
	}
	return all
}
