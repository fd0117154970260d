package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// call sends a request to the API by way of a mux like that of Caddy, and returns status and answer.
func call(t testing.TB, method, path, body string) (status int, answer string) {
	t.Helper()
	mux := http.NewServeMux()
	for _, route := range new(adminAPI).Routes() {
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
	recorder := httptest.NewRecorder()
	mux.ServeHTTP(recorder, httptest.NewRequest(method, path, strings.NewReader(body)))
	return recorder.Code, strings.TrimSpace(recorder.Body.String())
}

// list returns what the API tells of upstreams.
func list(t testing.TB, query string) (rows []row) {
	t.Helper()
	status, answer := call(t, "GET", upstreamsPath+query, "")
	if err := json.Unmarshal([]byte(answer), &rows); err != nil || status != 200 {
		t.Fatalf("%d %s: %v", status, answer, err)
	}
	return rows
}

// one returns what the API tells of an upstream that one handler has.
func one(t testing.TB, name string) row {
	t.Helper()
	rows := list(t, "/"+url.PathEscape(name))
	if len(rows) != 1 || rows[0].Name != name {
		t.Fatalf("%s: %+v", name, rows)
	}
	return rows[0]
}

// Each form of a name can be said in a path.
func TestNamesInPaths(t *testing.T) {
	t.Parallel()
	names := []string{
		newHost() + ":9", "[::1]:9000", "name.example:9000", "tcp/" + newHost() + ":9", "unix//run/x y.sock", "unix//run/50%.sock", "unix//run/a?b#c.sock",
		"{l4.tls.server_name}:443", newHost() + ":{l4.vars.port}", "{l4.vars.a/b}:1",
	}
	h := forwardTo(t, names...)
	for i, name := range names {
		if got := one(t, name); got.State != "up" {
			t.Errorf("%s is %s", name, got.State)
		}
		if status, answer := call(t, "PATCH", upstreamsPath+"/"+url.PathEscape(name), `{"state": "drain"}`); status != 200 || !strings.Contains(answer, `"state":"drain"`) {
			t.Errorf("%s: %d %s", name, status, answer)
		}
		if u := h.rosters.now.Load().pool.At(i); !u.Drained {
			t.Errorf("%s is not drained", name)
		}
		call(t, "PATCH", upstreamsPath+"/"+url.PathEscape(name), `{"state": "ready"}`)
	}
	if got := list(t, "/"+names[3]); got[0].Name != names[3] {
		t.Errorf("with a slash that is not escaped: %+v", got)
	}
	if status, answer := call(t, "GET", upstreamsPath+"/unix//run/50%25.sock", ""); status/100 != 3 {
		t.Errorf("with two slashes that are not escaped: %d %s, the docs say that it is redirected", status, answer)
	}
	if status, answer := call(t, "GET", upstreamsPath+"/unix/run/50%25.sock", ""); status != 404 || !strings.Contains(answer, `such as "unix//run/50%.sock"`) {
		t.Errorf("with one slash: %d %s", status, answer)
	}
}

func TestAdminErrors(t *testing.T) {
	t.Parallel()
	host := newHost()
	name := host + ":9000"
	forwardTo(t, name, host+":9001")
	path := upstreamsPath + "/" + name
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PATCH", upstreamsPath + "/" + host + ":9002", `{"state": "drain"}`, 404, fmt.Sprintf(`upstream: "%s:9002": expected one that the running config has, such as "%[1]s:9000", "%[1]s:9001"`, host)},
		{"GET", upstreamsPath + "/" + host, "", 404, fmt.Sprintf(`such as "%s:9000"`, host)},
		{"GET", upstreamsPath + "/" + strings.Repeat("x", 100_000), "", 404, "expected one that the running config has"},
		{"PATCH", upstreamsPath, `{"state": "drain"}`, 400, "expected the name of an upstream, as in /portgate/upstreams/127.0.0.1:9000"},
		{"PATCH", upstreamsPath + "/", `{"state": "drain"}`, 400, "expected the name of an upstream"},
		{"PUT", path, `{}`, 405, "method PUT: expected GET or PATCH"},
		{"DELETE", upstreamsPath, "", 405, "method DELETE: expected GET or PATCH"},
		{"PATCH", path, `{"state": "down"}`, 400, `state: "down": expected drain, maint or ready`},
		{"PATCH", path, `{"state": null}`, 400, `state: "null": expected drain, maint or ready`},
		{"PATCH", path, `{"state": 1}`, 400, `state: "1": expected drain, maint or ready`},
		{"PATCH", path, `{"weight": -1}`, 400, `weight: "-1": expected a whole number from 0 to 65535, or null, which gives back that of the config`},
		{"PATCH", path, `{"weight": 65536}`, 400, `weight: "65536": expected`},
		{"PATCH", path, `{"weight": 1.5}`, 400, `weight: "1.5": expected`},
		{"PATCH", path, `{"weight": "3"}`, 400, `weight: "3": expected`},
		{"PATCH", path, `{"state": "drain", "weigth": 3}`, 400, `unknown option "weigth": expected one of state, weight`},
		{"PATCH", path, `{}`, 400, `body: expected a state or a weight, such as {"state": "drain"} or {"weight": 3}`},
		{"PATCH", path, ``, 400, `body: expected a state or a weight`},
		{"PATCH", path, `state=drain`, 400, `body: expected a JSON object, such as {"state": "drain"}`},
		{"PATCH", path, `{"state": "` + strings.Repeat("x", 1<<20) + `"}`, 400, `body: `},
		{"PATCH", path + "?handler=x", `{"state": "drain"}`, 400, `unknown parameter "handler": expected none`},
		{"GET", upstreamsPath + "?stat=up", "", 400, `unknown parameter "stat": expected one of name, state, handler, limit, after`},
		{"GET", upstreamsPath + "?state=ready", "", 400, `state: "ready": expected up, slow_start, half_open, ejected, down, open, drain or maint`},
		{"GET", upstreamsPath + "?limit=0", "", 400, `limit: "0": expected`},
		{"GET", path + "?state=up", "", 400, `unknown parameter "state": expected none`},
	} {
		status, answer := call(t, c.method, c.path, c.body)
		if status != c.status || !strings.Contains(answer, c.says) || len(answer) > 101_000 {
			t.Errorf("%s %.60s %.60s: %d %.200s, want %d %s", c.method, c.path, c.body, status, answer, c.status, c.says)
		}
	}
	if got := one(t, name); got.State != "up" || !got.SetAt.IsZero() {
		t.Errorf("a request that was refused has changed something: %+v", got)
	}
}

// What a patch says of both is done, what it leaves out stays, and null gives the weight back.
func TestPatch(t *testing.T) {
	t.Parallel()
	name := refuses()
	forward := fmt.Sprintf(`{"upstreams": [{"address": %q, "weight": 5, "zone": "east"}, {"address": %q, "priority": 1}]}`, name, refuses())
	_, _, unload := provision(t, forward)
	for _, c := range []struct {
		body, state string
		weight      int
		configured  int
	}{
		{`{"state": "drain"}`, "drain", 5, -1},
		{`{"weight": 3}`, "drain", 3, 5},
		{`{"state": "maint"}`, "maint", 3, 5},
		{`{"state": "ready"}`, "up", 3, 5},
		{`{"weight": 0}`, "drain", 0, 5},
		{`{"state": "ready", "weight": 5}`, "up", 5, 5},
		{`{"state": "maint", "weight": null}`, "maint", 5, -1},
		{`{"state": "ready"}`, "up", 5, -1},
	} {
		status, answer := call(t, "PATCH", upstreamsPath+"/"+name, c.body)
		got := one(t, name)
		want := row{Name: name, State: c.state, Weight: c.weight, Zone: "east", SetAt: got.SetAt}
		if c.configured >= 0 {
			want.ConfiguredWeight = &c.configured
		}
		if fmt.Sprint(jsonOf(t, got)) != fmt.Sprint(jsonOf(t, want)) || answer != "["+jsonOf(t, want)+"\n]" || status != 200 {
			t.Errorf("%s: %d %s, then %s, want %s", c.body, status, answer, jsonOf(t, got), jsonOf(t, want))
		}
		if unset := c.state == "up" && c.configured < 0; got.SetAt.IsZero() != unset {
			t.Errorf("%s: set at %v", c.body, got.SetAt)
		}
	}
	// Without a config that has it, the upstream is shown as long as something is said of it.
	call(t, "PATCH", upstreamsPath+"/"+name, `{"state": "maint"}`)
	unload()
	if got := one(t, name); got.State != "maint" || got.SetAt.IsZero() {
		t.Errorf("absent: %+v", got)
	}
	if got := list(t, "?state=maint&name="+name); len(got) != 1 {
		t.Errorf("absent: %+v", got)
	}
	call(t, "PATCH", upstreamsPath+"/"+name, `{"state": "ready"}`)
	if status, answer := call(t, "GET", upstreamsPath+"/"+name, ""); status != 404 {
		t.Errorf("absent and ready: %d %s", status, answer)
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A listing has all upstreams once for all handlers that are alike, in order, and can be read in pages.
func TestListing(t *testing.T) {
	host := newHost()
	a, b, c := host+":9001", host+":9002", host+":9003"
	shared := to([]string{b, a}, object{"upstreams": []object{{"address": c, "priority": 1, "weight": 0}}})
	servers := object{
		"a": server(shared, "detachable/"+host+":7001"),
		"b": server(shared, "detachable/"+host+":7002"),
		"c": server(to([]string{b}), "udp/"+host+":7003"),
	}
	mustLoad(t, servers)
	if err := load(object{"layer4": object{"servers": servers}}); err != nil {
		t.Fatal(err)
	}
	rows := list(t, "?name="+host+":")
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprintf("%s %d %s %d %s", strings.TrimPrefix(r.Name, host), r.Priority, r.State, r.Listeners, strings.ReplaceAll(r.Handler, host, "")))
	}
	want := []string{":9001 0 up 2 detachable/:7001 0/0", ":9002 0 up 2 detachable/:7001 0/0", ":9002 0 up 1 udp/:7003 0/0", ":9003 1 drain 2 detachable/:7001 0/0"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for query, n := range map[string]int{
		"&state=drain": 1, "&state=up&state=drain": 4, "&state=maint": 0, "&handler=udp": 1, "&handler=detachable/" + host + ":7002": 3, "&handler=:7003": 1,
		"&limit=1": 1, "&limit=2": 3, "&limit=3": 3, "&after=" + a: 3, "&after=" + b + "&limit=1": 1, "&after=" + c: 0, "&limit=1&state=drain": 1,
	} {
		if rows := list(t, "?name="+host+":"+query); len(rows) != n {
			t.Errorf("%s: %d upstreams, want %d: %+v", query, len(rows), n, rows)
		}
	}
}

// What is known of the failures of an upstream is told, and it is ejected when it has failed often enough.
func TestListingOfFailures(t *testing.T) {
	t.Parallel()
	dead := refuses()
	h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q], "max_fails": 3, "fail_duration": "1h", "retries": 0}`, dead))
	k := kind{"detachable", detachable}
	for i := range 3 {
		if got := one(t, dead); got.State != "up" || got.Fails != i {
			t.Errorf("after %d fails: %+v", i, got)
		}
		client := k.client(t, h)
		logged(t, client)
	}
	got := one(t, dead)
	if got.State != "ejected" || got.Fails != 3 || !strings.Contains(got.LastError, "refused") || time.Since(got.CheckedAt) > time.Minute {
		t.Errorf("after 3 fails: %+v", got)
	}
	if got.Sessions != 0 {
		t.Errorf("%d sessions", got.Sessions)
	}
	if rows := list(t, "?state=ejected&name="+dead); len(rows) != 1 {
		t.Errorf("ejected are %+v", rows)
	}
	setUpstream(t, dead, maint, noWeight)
	if got := one(t, dead); got.State != "maint" || got.Fails != 3 {
		t.Errorf("in maint: %+v", got)
	}
}

// Reading all of 10,000 upstreams takes a moment, and setting one does, too.
func TestListingOfManyUpstreams(t *testing.T) {
	t.Parallel()
	host, names := newHost(), make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("%s:%d", host, 1+i)
	}
	forwardTo(t, names...)
	if rows := list(t, "?name="+host); len(rows) != len(names) {
		t.Errorf("%d rows", len(rows))
	}
	seen, after := 0, ""
	for {
		rows := list(t, "?limit=3000&name="+host+"&after="+after)
		if len(rows) == 0 {
			break
		}
		seen, after = seen+len(rows), rows[len(rows)-1].Name
	}
	if seen != len(names) {
		t.Errorf("%d upstreams in pages", seen)
	}
	if status, answer := call(t, "PATCH", upstreamsPath+"/"+names[5000], `{"state": "drain"}`); status != 200 {
		t.Errorf("%d %s", status, answer)
	}
	call(t, "PATCH", upstreamsPath+"/"+names[5000], `{"state": "ready"}`)
}

// Sessions that wait are told of, and where all upstreams are drained meanwhile, they end.
func TestListingOfAQueue(t *testing.T) {
	t.Parallel()
	name := echo(t)
	h, _, _ := provision(t, fmt.Sprintf(`{"upstreams": [{"address": %q, "max_connections": 1}], "queue": {"count": 10, "duration": "1h"}}`, name))
	k := kind{"detachable", detachable}
	first := k.client(t, h)
	exchange(t, first, "has the place")
	waiting := []*net.TCPConn{k.client(t, h), k.client(t, h)}
	eventually(t, func() error {
		if got := one(t, name); got.Queued != 2 || got.Sessions != 1 {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	setUpstream(t, name, drain, noWeight)
	for _, client := range waiting {
		if e := logged(t, client); e.Reason != "no_upstream" {
			t.Errorf("one that waited: %+v", e)
		}
	}
	exchange(t, first, "still has it")
	if got := one(t, name); got.Queued != 0 || got.Sessions != 1 || got.State != "drain" {
		t.Errorf("%+v", got)
	}
}
