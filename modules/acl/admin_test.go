package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// call sends a request to the API, and returns status and answer.
func call(t testing.TB, method, path, body string) (int, string) {
	t.Helper()
	request := httptest.NewRequest(method, path, strings.NewReader(body))
	request.RemoteAddr = "[::ffff:127.0.0.1]:1234"
	recorder := httptest.NewRecorder()
	err := new(adminAPI).serve(recorder, request)
	var failed caddy.APIError
	if errors.As(err, &failed) {
		return failed.HTTPStatus, failed.Err.Error()
	}
	must(t, err)
	return recorder.Code, strings.TrimSpace(recorder.Body.String())
}

func TestAdminAPI(t *testing.T) {
	h, _ := handler(t, `{"rules":[{"deny":["list","api"]}]}`)
	list := listsPath + "/api"
	for _, step := range []struct {
		method, path, body string
		status             int
		want               string // the beginning of the answer
		denied             bool   // 192.0.2.1, afterwards
	}{
		{"GET", list, "", 200, `{"name":"api","size":0,"entries":[]}`, false},
		{"PUT", list + "/entries/192.0.2.0/24", `{"ttl":"1h","reason":"scan","by":"me"}`, 200, `{"prefix":"192.0.2.0/24","added":"`, true},
		{"GET", listsPath, "", 200, `[{"name":"api","size":1,"rules":["deny"]}]`, true},
		{"GET", list + "/entries/192.0.2.0/24", "", 200, `{"prefix":"192.0.2.0/24","added":"`, true},
		{"GET", list + "/entries/192.0.2.1", "", 404, `prefix: "192.0.2.1/32": expected an entry of the list`, true},
		{"DELETE", list + "/entries/192.0.2.1", "", 404, `prefix: "192.0.2.1/32": expected an entry of the list`, true},
		{"DELETE", list + "/entries/::ffff:192.0.2.0/120", "", 204, ``, false},
		{"PUT", list + "/entries/192.0.2.1", "", 200, `{"prefix":"192.0.2.1/32","added":"`, true},
		{"PUT", list + "/entries/192.0.2.1/24", "", 400, `prefix: "192.0.2.1/24": expected no bits set behind the prefix: 192.0.2.0/24, or`, true},
		{"PUT", list + "/entries/x", "", 400, `prefix: "x": expected an address`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"ttl":"soon"}`, 400, `ttl: "soon": expected a duration such as 30s`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"ttl":"0s"}`, 400, `ttl: "0s": expected a duration of more than 0`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"tl":"1h"}`, 400, `unknown option "tl": expected one of prefix, ttl, reason, by, added, expires`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"ttl":60}`, 400, `ttl: "60": expected a string`, true},
		{"PUT", list + "/entries/192.0.2.9", `{`, 400, `body: expected a JSON object`, true},
		{"PUT", list + "/entries/192.0.2.9", `{} {}`, 400, `body: expected a JSON object`, true},
		{"PUT", list + "/entries/192.0.2.9", `ttl=1h`, 400, `body: expected a JSON object`, true},
		{"PUT", list + "/entries/192.0.2.1-192.0.2.9", "", 400, `prefix: "192.0.2.1-192.0.2.9": expected an address, or a prefix such as 10.0.0.0/8`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"reason":"` + strings.Repeat("x", 257) + `"}`, 400, `reason: expected at most 256 bytes`, true},
		{"POST", list + "/entries/192.0.2.9", "", 405, `method POST: expected GET, PUT or DELETE`, true},
		{"GET", list, "", 200, `{"name":"api","size":1,"entries":[{"prefix":"192.0.2.1/32","added":"`, true},
		{"PUT", list, `{"entries":[{"prefix":"10.0.0.0/8"},{"prefix":"10.1.0.0/33"}]}`, 400, `entries: prefix: "10.1.0.0/33": expected a prefix length`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"prefix":"192.0.2.8"}`, 400, `prefix: "192.0.2.8": expected "192.0.2.9/32", as the path has it, or nothing`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"expires":"2001-02-03T04:05:06Z"}`, 400, `expires: "2001-02-03T04:05:06Z": expected a time to come`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"expires":"tomorrow"}`, 400, `expires: "tomorrow": expected a time such as 2026-01-02T03:04:05Z`, true},
		{"PUT", list + "/entries/192.0.2.9", `{"added":"1700000000"}`, 400, `added: "1700000000": expected a time such as 2026-01-02T03:04:05Z`, true},
		{"PUT", list, `[]`, 400, `body: expected a JSON object`, true},
		{"PUT", list, `{"entries":[{"prefix":"10.0.0.0/8","tl":"1h"}]}`, 400, `entries: unknown option "tl": expected one of prefix, ttl, reason, by, added, expires`, true},
		{"PUT", list, `{"entries":{}}`, 400, `entries: "{}": expected a list`, true},
		{"PUT", list, ``, 400, `entries: expected a list`, true},
		{"PUT", list, `{"entries": []}`, 400, `entries: expected at least one, or ?all=true, which removes all entries of the list`, true},
		{"PUT", list, `{"entries":[{"prefix":"10.0.0.0/8","ttl":"1h"},{"prefix":"::1"}]}`, 200, `{"name":"api","size":2,"entries":[{"prefix":"10.0.0.0/8","added":"`, false},
		{"PUT", list + "/entries/::2", "", 200, `{"prefix":"::2/128"`, false},
		{"GET", list + "?limit=1", "", 200, `{"name":"api","size":3,"entries":[{"prefix":"::2/128","added":"`, false},
		{"GET", list + "?limit=0", "", 400, `limit: "0": expected a whole number from 1 to 100000`, false},
		{"PUT", list, `{"entries":[{"prefix":"192.0.2.1"}]}`, 200, `{"name":"api","size":1`, true},
		{"DELETE", list, "", 400, `all: expected ?all=true, which removes all entries of the list`, true},
		{"DELETE", list + "?all=true", "", 200, `{"name":"api","size":0,"removed":1}`, false},
		{"GET", listsPath + "/none", "", 404, `list: "none": expected a list that the running config names`, false},
		{"PUT", listsPath + "/none/entries/10.0.0.0/8", "", 404, `list: "none": expected`, false},
		{"GET", list + "/other", "", 404, `"/portgate/lists/api/other": expected /portgate/lists/{name} or /portgate/lists/{name}/entries/{prefix}`, false},
		{"PUT", listsPath, "", 405, `method PUT: expected GET`, false},
		{"PATCH", list, "", 400, `expected {"damaged": false}`, false},
		{"PATCH", list + "/entries/192.0.2.9", "", 405, `method PATCH`, false},
		{"POST", list, "", 405, `method POST: expected GET, PUT, PATCH or DELETE`, false},
	} {
		what := step.method + " " + step.path + " " + step.body
		status, got := call(t, step.method, step.path, step.body)
		if status != step.status || !strings.HasPrefix(got, step.want) {
			t.Errorf("%s: %d %s\nwant %d %s", what, status, got, step.status, step.want)
		}
		if denied := !try(t, h, from(one)); denied != step.denied {
			t.Errorf("%s: denied %t, want %t", what, denied, step.denied)
		}
	}
}

// A list is carried over by a PUT of what GET has given, and nothing of it is another one: who added an entry, when, and until when it
// stays. An entry whose time is over meanwhile is left out.
func TestListIsRestored(t *testing.T) {
	handler(t, `{"rules":[{"deny":["list","origin"]},{"deny":["list","copy"]}]}`)
	origin, copied := listsPath+"/origin", listsPath+"/copy"
	if status, got := call(t, "PUT", origin, `{"entries":[{"prefix":"192.0.2.1","ttl":"1h","reason":"scan","by":"me"},{"prefix":"2001:db8::/32","added":"2026-01-02T03:04:05.678Z"},
		{"prefix":"192.0.2.9","expires":"2001-02-03T04:05:06Z"},{"prefix":"192.0.2.7","ttl":"1s","expires":"9999-02-03T04:05:06+02:00"}]}`); status != http.StatusOK || !strings.Contains(got, `"expired":1`) {
		t.Fatal(status, got)
	}
	_, saved := call(t, "GET", origin, "")
	if n := strings.Count(saved, `"ttl":"59m`) + strings.Count(saved, `"ttl":"1h0m0s"`); n != 1 {
		t.Errorf("the time left is not shown: %s", saved)
	}
	sameAsOrigin := func() {
		t.Helper()
		var stored [2]string
		for i, name := range []string{"origin", "copy"} {
			entries := findList(name).snapshot()
			slices.SortFunc(entries, func(a, b entry) int { return comparePrefixes(a.Prefix, b.Prefix) })
			text, err := json.Marshal(entries)
			must(t, err)
			stored[i] = string(text)
		}
		if stored[0] != stored[1] {
			t.Errorf("%s became\n%s", stored[0], stored[1])
		}
	}
	if status, got := call(t, "PUT", copied, saved); status != http.StatusOK {
		t.Fatal(status, got)
	}
	sameAsOrigin()
	_, one := call(t, "GET", origin+"/entries/192.0.2.1", "")
	call(t, "DELETE", copied+"/entries/192.0.2.1", "")
	if status, got := call(t, "PUT", copied+"/entries/192.0.2.1", one); status != http.StatusOK {
		t.Fatal(status, got)
	}
	sameAsOrigin()
	call(t, "DELETE", origin+"?all=true", "")
	_, empty := call(t, "GET", origin, "")
	if status, got := call(t, "PUT", copied+"?all=true", empty); status != http.StatusOK || got != `{"name":"copy","size":0,"entries":[]}` {
		t.Error(status, got)
	}
}

// Who added an entry is known also where the request does not say.
func TestAdminAPIKnowsWhoAdded(t *testing.T) {
	handler(t, `{"rules":[{"deny":["list","who"]}]}`)
	for body, want := range map[string]string{`{"by":"me"}`: `"by":"me"`, "": `"by":"127.0.0.1"`} {
		if _, got := call(t, http.MethodPut, listsPath+"/who/entries/192.0.2.1", body); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
}

func TestAdminAPIOfAFullList(t *testing.T) {
	handler(t, `{"rules":[{"deny":["list","full"]}]}`)
	var body strings.Builder
	body.WriteString(`{"entries":[`)
	for n := range maxEntries + 1 {
		if n > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"prefix":"10.%d.%d.%d"}`, n>>16, n>>8&255, n&255)
	}
	body.WriteString(`]}`)
	status, got := call(t, http.MethodPut, listsPath+"/full", body.String())
	if want := "expected at most 100000 entries in a list"; status != http.StatusConflict || got != want {
		t.Errorf("%d %s, want 409 %s", status, got, want)
	}
}

// No slip of a script changes a list, least of all an empty variable: each of these requests is refused, through the same
// multiplexer as Caddy's, and also where the client follows its redirects.
func TestSlipsChangeNothing(t *testing.T) {
	h, _ := handler(t, `{"rules":[{"deny":["list","slips"]}]}`)
	const list = listsPath + "/slips"
	call(t, "PUT", list+"/entries/192.0.2.0/24", "")
	mux := http.NewServeMux()
	for _, route := range new(adminAPI).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			var failed caddy.APIError
			if errors.As(route.Handler.ServeHTTP(w, r), &failed) {
				w.WriteHeader(failed.HTTPStatus)
			}
		})
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	client := server.Client()
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		next.Method = via[0].Method // as curl -X does
		return nil
	}
	for _, path := range []string{
		"/slips", "/slips/", "/slips//", "/slips?all", "/slips?all=", "/slips?all=1", "/slips?all=false", "/slips?all=true&all=false", "/slips/?all=true",
		"/slips/entries", "/slips/entries/", "/slips/entries//", "/slips/entries///", "/slips/entries?all=true", "/slips/entries/?all=true",
		"/slips/entries/%2f", "/slips/entries/%2F", "/slips/entries/%2f%2f", "/slips/entries/%2F..", "/slips/entries/..%2F", "/slips/entries/%2e%2e", "/slips/entries/..",
		"/slips/entries/.", "/slips/entries/%20", "/slips/entries/%00", "/slips/entries/*", "/slips/entries/%2A", "/slips/entries/%",
		"/slips/entries/192.0.2.0", "/slips/entries/192.0.2.0/", "/slips/entries/192.0.2.0/24/", "/slips/entries/192.0.2.0/24%20",
		"/slips/entries/%20192.0.2.0/24", "/slips/entries/192.0.2.0/24,192.0.2.9", "/slips/Entries/192.0.2.0/24", "/slips/entries%2f192.0.2.0/24", "/slips/entries%2f", "/slips%2f",
		"/Slips", "/SLIPS/entries/192.0.2.0/24", "/sli%20ps", "/*", "//", "/", "", "?all=true", "/?all=true", "/%2f", "/..", "/slips/..", "/../lists/slips", "/./slips/./",
	} {
		request, err := http.NewRequest(http.MethodDelete, server.URL, nil)
		must(t, err)
		request.URL.Opaque = "//" + request.URL.Host + listsPath + path
		if before, query, ok := strings.Cut(request.URL.Opaque, "?"); ok {
			request.URL.Opaque, request.URL.RawQuery = before, query
		}
		response, err := client.Do(request)
		if err == nil { // else it is no request for Go
			response.Body.Close()
			if response.StatusCode/100 != 4 {
				t.Errorf("DELETE %s: status %d", path, response.StatusCode)
			}
		}
		if try(t, h, from(one)) {
			t.Fatalf("DELETE %s has changed the list", path)
		}
	}
	for _, path := range []string{"/slips/entries/192.0.2.0/24", "/slips/entries/192.0.2.0%2F24"} {
		call(t, "PUT", list+"/entries/192.0.2.0/24", "")
		if status, _ := call(t, "DELETE", listsPath+path, ""); status != http.StatusNoContent || !try(t, h, from(one)) {
			t.Errorf("DELETE %s: status %d", path, status)
		}
	}
	if status, _ := call(t, "DELETE", list+"/entries/", ""); status != http.StatusNotFound {
		t.Errorf("an empty prefix: status %d, want 404", status)
	}
	if status, _ := call(t, "DELETE", list+"/entries/%2f", ""); status != http.StatusNotFound {
		t.Errorf("an escaped slash: status %d, want 404", status)
	}
}

// A list tells what the rules do that name it, for as long as they live: whoever bans somebody must not put him into one that lets in.
func TestListsTellWhatTheyAreFor(t *testing.T) {
	actions := func() (found []string) {
		for _, one := range summaries() {
			if one.Name == "both" {
				found = one.Rules
			}
		}
		return found
	}
	_, release := handler(t, `{"rules":[{"allow":["list","both"]}]}`)
	if got := actions(); !slices.Equal(got, []string{"allow"}) {
		t.Errorf("one config: %q", got)
	}
	_, releaseNext := handler(t, `{"rules":[{"deny":["list","both"]},{"allow":["list","both"]}],"default":"deny"}`)
	if got := actions(); !slices.Equal(got, []string{"allow", "deny"}) {
		t.Errorf("two configs: %q", got)
	}
	release()
	releaseNext()
	_, _ = handler(t, `{"rules":[{"deny":["list","both"]}]}`)
	if got := actions(); !slices.Equal(got, []string{"deny"}) {
		t.Errorf("the last config: %q", got)
	}
}
