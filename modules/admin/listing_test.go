package admin

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func TestSort(t *testing.T) {
	t.Parallel()
	scope, _ := newScope(t)
	listener := newListener()
	var all []living
	for i, c := range []struct {
		client, upstream string
		up, down         int64
		age, idle        time.Duration
	}{
		{"192.0.2.9:1", "10.0.0.2:1", 1, 500, time.Hour, time.Minute},
		{"192.0.2.10:1", "10.0.0.1:1", 300, 2, 3 * time.Hour, time.Hour},
		{"[2001:db8::1]:1", "10.0.0.3:1", 20, 400, 2 * time.Hour, 2 * time.Minute},
	} {
		all = append(all, begin(t, scope, "tcp", listener, c.client, c.upstream, c.age))
		all[i].move(c.up, c.down)
		idle := time.Now().Add(-c.idle)
		all[i].active.Store(&idle)
	}
	for sort, want := range map[string][]int{
		"session_id": {0, 1, 2}, "client_ip": {0, 1, 2}, "upstream": {1, 0, 2}, "listener": {0, 1, 2}, "duration": {1, 2, 0}, "idle": {1, 2, 0},
		"bytes": {0, 2, 1}, "bytes_up": {1, 2, 0}, "bytes_down": {0, 2, 1}, "rate": {0, 1, 2},
	} {
		var wanted []string
		for _, i := range want {
			wanted = append(wanted, all[i].id())
		}
		if got := ids(list(t, "?listener="+listener+"&sort="+sort)); !slices.Equal(got, wanted) {
			t.Errorf("by %s: %v, want %v", sort, got, wanted)
		}
		if got := ids(list(t, "?limit=2&listener="+listener+"&sort="+sort)); !slices.Equal(got, wanted[:2]) {
			t.Errorf("the first by %s: %v, want %v", sort, got, wanted[:2])
		}
		slices.Reverse(wanted)
		if got := ids(list(t, "?listener="+listener+"&sort=-"+sort)); !slices.Equal(got, wanted) {
			t.Errorf("by -%s: %v, want %v", sort, got, wanted)
		}
	}
}

// next returns the path of the next page, "" where there is none.
func next(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	link := w.Header().Get("Link")
	if link == "" {
		return ""
	}
	path, ok := strings.CutSuffix(link, `>; rel="next"`)
	if !ok || !strings.HasPrefix(path, "<"+sessionsPath+"?") {
		t.Fatalf("Link: %s", link)
	}
	return path[1:]
}

// Pages have each session that lives throughout exactly once, whatever begins and ends meanwhile.
func TestPages(t *testing.T) {
	t.Parallel()
	const n, perPage = 25, 10
	scope, _ := newScope(t)
	listener := newListener()
	var want, got []string
	for range n {
		want = append(want, begin(t, scope, "tcp", listener, "192.0.2.1:1", "10.0.0.1:1", 0).id())
	}
	pages, path := 0, sessionsPath+fmt.Sprintf("?format=csv&limit=%d&listener=%s", perPage, url.QueryEscape(listener))
	for ; path != ""; pages++ {
		w := request(t, "GET", path)
		lines, err := csv.NewReader(w.Body).ReadAll()
		if err != nil || w.Code != 200 {
			t.Fatalf("%d: %v", w.Code, err)
		}
		for _, line := range lines[1:] {
			got = append(got, line[0])
		}
		if path = next(t, w); path != "" && len(lines) != 1+perPage {
			t.Errorf("page %d has %d sessions", pages, len(lines)-1)
		}
	}
	if pages != 3 || !slices.Equal(got, want) {
		t.Errorf("%d pages with %v, want %v", pages, got, want)
	}
	if w := request(t, "GET", sessionsPath+fmt.Sprintf("?limit=%d&listener=%s", n, listener)); next(t, w) != "" {
		t.Error("a page that has all names a next one")
	}
	if w := request(t, "GET", sessionsPath+"?sort=bytes&limit=2&listener="+listener); next(t, w) != "" {
		t.Error("an order that changes has a next page")
	}
}

// CSV has what JSON has.
func TestCSV(t *testing.T) {
	t.Parallel()
	scope, _ := newScope(t)
	listener := newListener() + ` "quoted", and` + "\r\n" + `more`
	l := begin(t, scope, "tcp", listener, "[2001:db8::1]:7", "10.0.0.1:1", time.Hour)
	l.move(5, 6)
	l.UpstreamFailed("a:1", nil)
	l.UpstreamFailed("b:1", nil)
	begin(t, scope, "udp", listener, "192.0.2.1:7", "10.0.0.1:1", time.Hour)
	w := request(t, "GET", sessionsPath+"?format=csv&upstream=10.0.0.1:1&listener="+url.QueryEscape(listener))
	if got := w.Header().Get("Content-Type"); got != "text/csv; charset=utf-8; header=present" {
		t.Errorf("Content-Type %q", got)
	}
	lines, err := csv.NewReader(w.Body).ReadAll()
	if err != nil || len(lines) != 3 {
		t.Fatalf("%d lines: %v", len(lines), err)
	}
	value := func(line int, name string) string { return lines[line][slices.Index(lines[0], name)] }
	for name, want := range map[string]string{
		"session_id": l.id(), "state": "forwarding", "network": "tcp", "listener": strings.ReplaceAll(listener, "\r\n", "\n"), "client_ip": "2001:db8::1", "client_port": "7",
		"upstream": "10.0.0.1:1", "failed_upstreams": "a:1 b:1", "bytes_up": "5", "bytes_down": "6", "datagrams_up": "", "replaced": "false", "rule": "",
	} {
		if got := value(1, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if up, down := value(2, "datagrams_up"), value(2, "datagrams_down"); up != "2" || down != "3" {
		t.Errorf("%s and %s datagrams", up, down)
	}
	if d, err := strconv.ParseFloat(value(1, "duration"), 64); err != nil || d < 3600 {
		t.Errorf("duration %v: %v", d, err)
	}
}

// stuck is a client that does not read until it is let go.
type stuck struct {
	*httptest.ResponseRecorder
	began, goOn chan struct{}
	once        sync.Once
	deadlines   []time.Time
}

func (s *stuck) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.began) })
	<-s.goOn
	return s.ResponseRecorder.Write(b)
}

func (s *stuck) SetWriteDeadline(at time.Time) error {
	s.deadlines = append(s.deadlines, at)
	return nil
}

// While somebody reads slowly, sessions begin, end and are closed, and others are answered. Whoever reads nothing has a deadline.
func TestSlowReaderHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "csv"} {
		scope, _ := newScope(t)
		listener := newListener()
		for range 500 {
			begin(t, scope, "tcp", listener, "192.0.2.1:1", "10.0.0.1:1", 0)
		}
		w := &stuck{ResponseRecorder: httptest.NewRecorder(), began: make(chan struct{}), goOn: make(chan struct{})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			serveMux(t).ServeHTTP(w, httptest.NewRequest(http.MethodGet, sessionsPath+"?format="+format+"&listener="+listener, nil))
		}()
		<-w.began
		for range 200 { // in all parts of the registry
			begin(t, scope, "tcp", listener, "192.0.2.1:1", "10.0.0.1:1", 0).End(session.End{})
		}
		if got := len(list(t, "?listener="+listener)); got != 500 {
			t.Errorf("%d sessions", got)
		}
		if status, answer := call(t, "DELETE", sessionsPath+"?listener="+listener); status != 200 || answer != `{"closed":500}` {
			t.Errorf("%d %s", status, answer)
		}
		close(w.goOn)
		<-done
		if n := len(w.deadlines); n < 2 || time.Until(w.deadlines[0]) > answerTimeout || !w.deadlines[n-1].IsZero() {
			t.Errorf("deadlines %v", w.deadlines)
		}
	}
}

// Lists are made and sessions closed while sessions begin, move bytes and end, and configs come and go.
func TestRaces(t *testing.T) {
	t.Parallel()
	listener := newListener()
	stop := make(chan struct{})
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				scope, unload := newScope(t)
				for i := range 20 {
					l := living{(&session.Arrival{Network: "tcp", Listener: listener}).Begin(scope), newMover()}
					l.SetMover(l.mover)
					l.SetUpstream("a:1", nil, nil)
					l.move(1, 2)
					if i == 10 {
						unload()
					}
					l.UpstreamFailed("b:1", nil)
					l.Dialed(time.Millisecond)
					l.End(session.End{Status: session.StatusDone})
				}
			}
		})
	}
	var readers sync.WaitGroup
	for _, query := range []string{"?sort=rate&", "?format=csv&", "?limit=3&", "?sort=-idle&"} {
		readers.Go(func() {
			for range 30 {
				if status, answer := call(t, http.MethodGet, sessionsPath+query+"listener="+listener); status != 200 {
					t.Errorf("%d %s", status, answer)
				}
			}
		})
	}
	readers.Go(func() {
		for range 30 {
			if status, answer := call(t, http.MethodDelete, sessionsPath+"?idle=1ns&upstream=a:1&listener="+listener); status != 200 {
				t.Errorf("%d %s", status, answer)
			}
		}
	})
	readers.Wait()
	close(stop)
	work.Wait()
	if got := list(t, "?listener="+listener); len(got) != 0 {
		t.Errorf("%d sessions are left", len(got))
	}
}
