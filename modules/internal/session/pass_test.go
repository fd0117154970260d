package session

import (
	"net/netip"
	"slices"
	"testing"

	"go.uber.org/zap/zaptest/observer"

	"github.com/portgate/caddy-portgate/modules/internal/recheck"
)

// A session knows what has let it through, in both ways that it may begin.
func TestSessionKnowsItsPasses(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	first, second := new(recheck.Admission), new(recheck.Admission)
	note := func(a *Arrival) {
		a.Admit(recheck.Pass{Admission: first, Client: netip.MustParseAddr("192.0.2.1")})
		a.Admit(recheck.Pass{Admission: second, Client: netip.MustParseAddr("192.0.2.2")})
	}
	c := conn{local: tcpAddr("127.0.0.1:80"), remote: tcpAddr("192.0.2.1:1")}
	cx := wrap(c)
	note(ArrivalOf(cx))
	accepted := &Arrival{Conn: c, Network: "tcp", Listener: newLabel()}
	note(accepted)
	for _, s := range []*Session{Begin(cx, sc), accepted.Begin(sc)} {
		passes := s.Passes()
		if len(passes) != 2 || passes[0].Admission != first || passes[1].Admission != second || passes[1].Client.String() != "192.0.2.2" {
			t.Errorf("%+v", passes)
		}
		s.End(End{})
	}
	if a := ArrivalOf(cx); a.Begin(sc) != Begin(cx, sc) || a.Client.String() != "192.0.2.1:1" || a.Listener != ":80" || a.Accepted() != c {
		t.Errorf("%+v", a)
	}
}

// watcher notes what it is asked for.
type watcher struct {
	all     int
	clients []netip.Addr
}

func (w *watcher) RecheckAll()                     { w.all++ }
func (w *watcher) RecheckClient(client netip.Addr) { w.clients = append(w.clients, client) }

// Those who judge living sessions are told when a config was replaced, and when a session begins that was judged before a
// change. These tests are not parallel, because all are told.
func TestWatchersAreTold(t *testing.T) {
	sc, _, unload := newScope(t, 0, 0)
	w := new(watcher)
	end := recheck.Watch(w)
	client := netip.MustParseAddr("192.0.2.1")
	admission := new(recheck.Admission)
	arrival := func() *Arrival {
		a := &Arrival{Network: "tcp", Listener: newLabel()}
		a.Admit(recheck.Pass{Admission: admission, Edition: admission.Edition(), Client: client})
		return a
	}
	arrival().Begin(sc).End(End{})
	if len(w.clients) > 0 {
		t.Error("told of a session that was judged by the lists of now")
	}
	late := arrival()
	admission.Changed()
	s := late.Begin(sc)
	if !slices.Equal(w.clients, []netip.Addr{client}) {
		t.Error("not told of a session that was judged before the change")
	}
	if s.Replaced() {
		t.Error("replaced before it was")
	}
	unload()
	sc.Replaced()
	if w.all != 1 || !s.Replaced() {
		t.Error("not told of a config that was replaced")
	}
	s.End(End{})
	end()
	sc.Replaced()
	if w.all != 1 {
		t.Error("told after the end")
	}
}

// The entry of a client that is denied has the rule.
func TestDeniedEntry(t *testing.T) {
	t.Parallel()
	sc, logs, _ := newScope(t, 0, 0)
	s := begin(t, sc)
	s.SetRule("deny list bans")
	s.End(End{Status: StatusDenied, Reason: ReasonDenied})
	s.SetRule("too late")
	entry := logs.All()[0].ContextMap()
	if entry["status"] != int64(StatusDenied) || entry["reason"] != ReasonDenied || entry["rule"] != "deny list bans" {
		t.Errorf("%v", entry)
	}
	if _, ok := entry["skipped"]; ok {
		t.Errorf("%v", entry)
	}
}

// A flood of clients that are denied writes few entries, one of which tells how many it stands for. It keeps no entry of
// another kind away.
func TestDeniedEntriesAreFew(t *testing.T) {
	t.Parallel()
	sc, logs, _ := newScope(t, 0, 0)
	const flood = 10 * samplesBurst
	for range flood {
		begin(t, sc).End(End{Status: StatusDenied, Reason: ReasonDenied})
	}
	begin(t, sc).End(End{Status: StatusDone})
	written := denied(logs)
	if written < samplesBurst || written > flood/2 {
		t.Errorf("%d entries of %d", written, flood)
	}
	if got := logs.Len() - written; got != 1 {
		t.Errorf("%d entries of other sessions, want 1", got)
	}
}

func denied(logs *observer.ObservedLogs) (n int) {
	for _, entry := range logs.All() {
		if entry.ContextMap()["status"] == int64(StatusDenied) {
			n++
		}
	}
	return n
}
