package admin

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// The fields are those of the access log and some besides, and no others.
func TestFields(t *testing.T) {
	t.Parallel()
	scope, unload := newScope(t)
	listener := newListener()
	tcp := begin(t, scope, "tcp", listener, "192.0.2.7:51228", "10.0.0.1:9001", time.Hour)
	tcp.move(78, 137)
	tcp.UpstreamFailed("other:1", nil)
	udp := begin(t, scope, "udp", listener, "[2001:db8::1]:53", "10.0.0.1:9002", 0)
	unix := begin(t, scope, "unix", listener, "", "10.0.0.1:9003", 0)
	unload()
	fields := func(id string) map[string]any {
		t.Helper()
		status, answer := call(t, "GET", sessionsPath+"/"+id)
		var got map[string]any
		if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 {
			t.Fatalf("%d %s: %v", status, answer, err)
		}
		for name, most := range map[string]float64{"duration": 2 * 3600, "idle": 3600, "connect_duration": 2 * 3600} { // of a busy machine
			if d, ok := got[name].(float64); !ok && (name != "connect_duration" || id != unix.id()) || d < 0 || d > most {
				t.Errorf("%s is %v", name, got[name])
			}
			delete(got, name)
		}
		delete(got, "rate_up")
		delete(got, "rate_down")
		return got
	}
	for want, l := range map[string]living{
		`{"session_id": "` + tcp.id() + `", "state": "forwarding", "network": "tcp", "listener": "` + listener + `", "client_ip": "192.0.2.7",
			"client_port": 51228, "upstream": "10.0.0.1:9001", "failed_upstreams": ["other:1"], "bytes_up": 78, "bytes_down": 137, "replaced": true}`: tcp,
		`{"session_id": "` + udp.id() + `", "state": "forwarding", "network": "udp", "listener": "` + listener + `", "client_ip": "2001:db8::1",
			"client_port": 53, "upstream": "10.0.0.1:9002", "bytes_up": 0, "bytes_down": 0, "datagrams_up": 2, "datagrams_down": 3, "replaced": true}`: udp,
		`{"session_id": "` + unix.id() + `", "state": "forwarding", "network": "unix", "listener": "` + listener + `",
			"upstream": "10.0.0.1:9003", "bytes_up": 0, "bytes_down": 0, "replaced": true}`: unix,
	} {
		var wanted map[string]any
		if err := json.Unmarshal([]byte(want), &wanted); err != nil {
			t.Fatal(err)
		}
		if got := fields(l.id()); fmt.Sprint(got) != fmt.Sprint(wanted) {
			t.Errorf("got  %v\nwant %v", got, wanted)
		}
	}
	if d := list(t, "?listener="+listener+"&client=192.0.2.7")[0].Duration; d < 3600 {
		t.Errorf("duration is %v: the client has connected an hour ago", d)
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	scope, _ := newScope(t)
	listener := newListener()
	start := func() living {
		a := session.Arrival{Network: "tcp", Listener: listener}
		l := living{a.Begin(scope), newMover()}
		t.Cleanup(func() { l.End(session.End{}) })
		return l
	}
	mustBe := func(l living, want session.State) {
		t.Helper()
		if got, ok := l.Look(); !ok || got.State != want {
			t.Errorf("%v, %v, want %s", got.State, ok, want)
		}
	}
	var tallies state.Tallies[string]
	l := start()
	mustBe(l, session.StateWaiting)
	l.SetMover(l.mover)
	mustBe(l, session.StateWaiting)
	l.SetUpstream("a:1", nil, tallies.Hold("a:1"))
	mustBe(l, session.StateConnecting)
	l.Dialed(time.Millisecond)
	mustBe(l, session.StateForwarding)
	closing := start()
	closing.Session.Close("x")
	mustBe(closing, session.StateClosing)
	refused := start()
	refused.SetMover(refusing{refused.mover})
	mustBe(refused, session.StateRefused)
	udp := start()
	udp.SetMover(datagramMover{udp.mover})
	mustBe(udp, session.StateConnecting)
	if got := list(t, "?listener="+listener+"&sort=state"); len(got) != 4 || got[0].State != "closing" || got[3].State != "refused" {
		t.Errorf("by state: %+v", got)
	}
	l.End(session.End{})
	if _, ok := l.Look(); ok {
		t.Error("a session that has ended is shown as a living one")
	}
}

// some are sessions that each filter tells apart.
type some struct {
	listener  string
	all       []living
	by        map[string][]int // the filter, and which of them pass it
	untouched living           // on another listener
}

func newSome(t *testing.T) some {
	t.Helper()
	scope, _ := newScope(t)
	s := some{listener: newListener()}
	s.all = []living{
		begin(t, scope, "tcp", s.listener, "203.0.113.1:1000", "10.9.0.1:1", 2*time.Hour),
		begin(t, scope, "tcp", s.listener, "[::ffff:203.0.113.2]:1000", "10.9.0.2:1", 0),
		begin(t, scope, "udp", s.listener, "[2001:db8:7::1%eth0]:1000", "10.9.0.1:1", 0),
		begin(t, scope, "unix", s.listener, "", "10.9.0.3:1", 30*time.Minute),
	}
	long := time.Now().Add(-time.Hour)
	s.all[3].active.Store(&long)
	s.untouched = begin(t, scope, "tcp", newListener(), "198.51.100.1:1000", "10.8.0.1:1", 0)
	s.by = map[string][]int{
		"listener=" + s.listener:                    {0, 1, 2, 3},
		"client=203.0.113.1":                        {0},
		"client=203.0.113.0/24":                     {0, 1},
		"client=::ffff:203.0.113.0/120":             {0, 1},
		"client=::ffff:203.0.113.1":                 {0},
		"client=203.0.113.1&client=2001:db8:7::/48": {0, 2},
		"client=2001:db8:7::1%25eth0":               {2},
		"upstream=10.9.0.1:1":                       {0, 2},
		"upstream=name.10.9.0.1:1":                  {0, 2},
		"upstream=10.9.0.2:1&upstream=10.9.0.3:1":   {1, 3},
		"older=1h":                       {0},
		"older=29m":                      {0, 3},
		"older=1d":                       nil,
		"idle=59m":                       {3},
		"network=udp":                    {2},
		"network=tcp&network=unix":       {0, 1, 3},
		"client=203.0.113.0/24&older=1h": {0},
		"client=203.0.113.0/24&upstream=10.9.0.3:1":  nil,
		"upstream=10.9.0.1:1&network=tcp":            {0},
		"listener=" + s.listener + "x":               nil,
		"listener=" + s.listener + "&listener=other": {0, 1, 2, 3},
	}
	return s
}

// query has the filter concern no sessions of other tests.
func (s *some) query(filter string) string {
	if strings.Contains(filter, "listener=") {
		return "?" + filter
	}
	return "?listener=" + s.listener + "&" + filter
}

func TestFilters(t *testing.T) {
	t.Parallel()
	s := newSome(t)
	for filter, passing := range s.by {
		var want []string
		for _, i := range passing {
			want = append(want, s.all[i].id())
		}
		if got := ids(list(t, s.query(filter))); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", filter, got, want)
		}
	}
}

// DELETE closes exactly what GET lists with the same filter, and says how many.
func TestCloseByFilter(t *testing.T) {
	t.Parallel()
	first := newSome(t)
	for filter, passing := range first.by {
		s := newSome(t)
		filter = strings.ReplaceAll(filter, first.listener, s.listener)
		status, answer := call(t, "DELETE", sessionsPath+s.query(filter))
		if want := fmt.Sprintf(`{"closed":%d}`, len(passing)); status != 200 || answer != want {
			t.Errorf("%s: %d %s, want %s", filter, status, answer, want)
		}
		for i, l := range append(s.all, s.untouched) {
			want := ""
			if slices.Contains(passing, i) {
				want = "admin_closed"
			}
			if got := l.closedWith(); got != want {
				t.Errorf("%s: session %d was closed with %q, want %q", filter, i, got, want)
			}
		}
	}
}

func TestCloseOne(t *testing.T) {
	t.Parallel()
	s := newSome(t)
	path := sessionsPath + "/" + s.all[1].id()
	if status, answer := call(t, "DELETE", path); status != 200 || answer != `{"closed":1}` {
		t.Errorf("%d %s", status, answer)
	}
	for i, l := range s.all {
		if got := l.closedWith(); (got == "admin_closed") != (i == 1) {
			t.Errorf("session %d was closed with %q", i, got)
		}
	}
	s.all[1].End(session.End{})
	want := fmt.Sprintf("session_id: %q: expected a session that has not ended", s.all[1].id())
	for _, method := range []string{"GET", "DELETE"} {
		if status, answer := call(t, method, path); status != 404 || answer != want {
			t.Errorf("%s: %d %s", method, status, answer)
		}
	}
}

// A session that nobody moves yet is closed as soon as somebody does.
func TestCloseBeforeThereIsAMover(t *testing.T) {
	t.Parallel()
	scope, _ := newScope(t)
	listener := newListener()
	a := session.Arrival{Network: "tcp", Listener: listener}
	l := living{a.Begin(scope), newMover()}
	t.Cleanup(func() { l.End(session.End{}) })
	if status, answer := call(t, "DELETE", sessionsPath+"?listener="+listener); status != 200 || answer != `{"closed":1}` {
		t.Errorf("%d %s", status, answer)
	}
	l.SetMover(l.mover)
	if got := l.closedWith(); got != "admin_closed" {
		t.Errorf("closed with %q", got)
	}
}

const (
	aFilter   = "expected at least one of client, listener, upstream, older, idle; ?all=true closes all"
	aClient   = "expected an address or a prefix such as 192.0.2.0/24, with no bit set behind its length"
	aDuration = "expected a duration of more than 0, such as 30s"
	anID      = "expected an ID such as c9b6233d00000001"
)

// What may be the slip of a script closes nothing.
func TestSlipsCloseNothing(t *testing.T) {
	t.Parallel()
	s := newSome(t)
	one, listener := s.all[0].id(), "listener="+s.listener
	for path, says := range map[string]string{
		"":                                    aFilter,
		"?":                                   aFilter,
		"?&":                                  aFilter,
		"?network=tcp":                        aFilter, // nearly all of them
		"?client=":                            `client: "": ` + aClient,
		"?client":                             `client: "": ` + aClient,
		"?listener=":                          `listener: "": expected a listener as sessions have it, such as 127.0.0.1:8080`,
		"?upstream=":                          `upstream: "": expected an upstream as configured or its address, such as 127.0.0.1:9000`,
		"?" + listener + "&upstream=":         `upstream: "": expected`,
		"?" + listener + "&client=":           `client: "": expected`,
		"?" + listener + "&network=":          `network: "": expected a network as sessions have it, such as tcp or udp`,
		"?" + listener + "&older=":            `older: "": ` + aDuration,
		"?" + listener + "&idle=":             `idle: "": ` + aDuration,
		"?" + listener + "&older=0":           `older: "0": ` + aDuration,
		"?" + listener + "&older=-1h":         `older: "-1h": ` + aDuration,
		"?" + listener + "&older=1h&older=2h": `older: "1h, 2h": expected one value`,
		"?" + listener + "%20":                `expected a listener as sessions have it`,
		"?" + listener + "&client=1.2.3.4&client=": `client: "": expected`,
		"?" + listener + ";client=203.0.113.1":     `query: `, // else the client would be lost
		"?" + listener + "&client=203.0.113.1%":    `query: `,
		"?client=203.0.113.1/24":                   `client: "203.0.113.1/24": ` + aClient,
		"?client=203.0.113.0/":                     `client: "203.0.113.0/": ` + aClient,
		"?client=0.0.0.0/0":                        `client: "0.0.0.0/0": expected a prefix that is longer; ?all=true closes all`,
		"?client=::/0":                             `client: "::/0": expected a prefix that is longer`,
		"?client=::ffff:0.0.0.0/96":                `client: "0.0.0.0/0": expected a prefix that is longer`,
		"?" + listener + "&client=0.0.0.0/0":       `client: "0.0.0.0/0": expected a prefix that is longer`,
		"?" + listener + "&limit=1":                `unknown parameter "limit": expected one of client, listener, upstream, network, older, idle, all`,
		"?" + listener + "&clinet=203.0.113.1":     `unknown parameter "clinet": expected one of`,
		"?" + listener + "&Client=203.0.113.1":     `unknown parameter "Client": expected one of`,
		"?all=":                                    `all: "": expected ?all=true and nothing else, which closes all sessions`,
		"?all=false":                               `all: "false": expected ?all=true and nothing else`,
		"?all=true&all=true":                       `all: "true, true": expected ?all=true and nothing else`,
		"?all=true&" + listener:                    `all: "true": expected ?all=true and nothing else`,
		"/":                                        `session_id: "": ` + anID,
		"/?" + listener:                            `unknown parameter "listener": expected none`,
		"/?all=true":                               `unknown parameter "all": expected none`,
		"/" + one + "?" + listener:                 `unknown parameter "listener": expected none`,
		"/" + one[:15]:                             anID,
		"/" + one + "0":                            anID,
		"/" + one + "/":                            anID,
		"/0x" + one[2:]:                            anID,
		"/+" + one[1:]:                             anID,
		"/%20":                                     `session_id: " ": ` + anID,
		"/*":                                       `session_id: "*": ` + anID,
		"?" + strings.Repeat("client=1.2.3.4/&", 99): `client: "1.2.3.4/": `,
	} {
		status, answer := call(t, "DELETE", sessionsPath+path)
		if status != 400 || !strings.Contains(answer, says) {
			t.Errorf("%s: %d %s, want 400 %s", path, status, answer, says)
		}
	}
	for i, l := range append(s.all, s.untouched) {
		if got := l.closedWith(); got != "" {
			t.Errorf("session %d was closed with %q", i, got)
		}
	}
}

func TestListErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"POST", "", 405, "method POST: expected GET or DELETE"},
		{"PUT", "/0000000000000001", 405, "method PUT: expected GET or DELETE"},
		{"GET", "?al=true", 400, `unknown parameter "al": expected one of client, listener, upstream, network, older, idle, sort, limit, after, format`},
		{"GET", "?all=true", 400, `unknown parameter "all": expected one of`},
		{"GET", "?client=", 400, `client: "": ` + aClient},
		{"GET", "?client=a.example", 400, `client: "a.example": ` + aClient},
		{"GET", "?idle=5x", 400, `idle: "5x": ` + aDuration},
		{"GET", "?sort=byts", 400, `sort: "byts": expected session_id, client_ip, listener, upstream, state, duration, idle, bytes, bytes_up, bytes_down, rate, rate_up or rate_down`},
		{"GET", "?sort=", 400, `sort: "": expected session_id,`},
		{"GET", "?sort=bytes&sort=idle", 400, `sort: "bytes, idle": expected one value`},
		{"GET", "?limit=0", 400, `limit: "0": expected a whole number from 1 to 1000000`},
		{"GET", "?limit=", 400, `limit: "": expected a whole number`},
		{"GET", "?after=1", 400, `after: "1": ` + anID},
		{"GET", "?after=0000000000000001&sort=bytes", 400, `after: expected the order of session_id, because other orders change between two pages`},
		{"GET", "?after=0000000000000001&sort=-session_id", 400, `after: expected the order of session_id`},
		{"GET", "?format=xml", 400, `format: "xml": expected json or csv`},
		{"GET", "/0000000000000001", 404, `session_id: "0000000000000001": expected a session that has not ended`},
		{"GET", "/" + strings.Repeat("x", 100_000), 400, anID},
	} {
		status, answer := call(t, c.method, sessionsPath+c.path)
		if status != c.status || !strings.Contains(answer, c.says) {
			t.Errorf("%s %.60s: %d %.300s, want %d %s", c.method, c.path, status, answer, c.status, c.says)
		}
	}
}

func TestNobodyMatches(t *testing.T) {
	t.Parallel()
	query := "?listener=" + url.QueryEscape(newListener())
	if status, answer := call(t, "GET", sessionsPath+query); status != 200 || answer != "[]" {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := call(t, "DELETE", sessionsPath+query); status != 200 || answer != `{"closed":0}` {
		t.Errorf("%d %s", status, answer)
	}
}
