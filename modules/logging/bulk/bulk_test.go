package bulk

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// item is an action of a request with its document.
type item struct {
	index, id string
	document  map[string]any
	text      string
}

// readBulk reads a request as Elasticsearch does.
func readBulk(body io.Reader) (all []item, err error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var action map[string]struct {
			Index string `json:"_index"`
			ID    string `json:"_id"`
		}
		if err := json.Unmarshal(lines.Bytes(), &action); err != nil {
			return nil, err
		}
		create, ok := action["create"]
		if !ok || !lines.Scan() {
			return nil, fmt.Errorf("%v is no action with a document", action)
		}
		one := item{create.Index, create.ID, nil, lines.Text()}
		if err := json.Unmarshal(lines.Bytes(), &one.document); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, lines.Err()
}

func batch(lines ...string) (all []delivery.Entry) {
	for i, line := range lines {
		all = append(all, delivery.Entry{Line: []byte(line), Arrived: time.Date(2026, 11, 28, 12, 0, 0, 5000, time.UTC), ID: uint64(i + 1)})
	}
	return all
}

// client returns one for a server of the test.
func client(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c := &Client{
		HTTP: &http.Client{Transport: new(http.Transport), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		URL:  server.URL + "/_bulk?secret=hidden", Authorization: "ApiKey secret", Index: "gate", IDs: "x-",
	}
	t.Cleanup(c.Close)
	return c
}

func send(t *testing.T, c *Client, lines ...string) delivery.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r := c.Send(ctx, batch(lines...))
	if ctx.Err() != nil {
		t.Fatal("it hangs")
	}
	if (r.Err == nil) != (len(r.Retry) == 0 && r.Rejected == 0) {
		t.Errorf("%+v: an error and entries that are not sent go together", r)
	}
	if r.Err != nil && (strings.Contains(r.Err.Error(), "secret") || strings.Contains(r.Err.Error(), "hidden")) {
		t.Errorf("%q has a secret", r.Err)
	}
	return r
}

func ids(entries []delivery.Entry) (all []uint64) {
	for _, e := range entries {
		all = append(all, e.ID)
	}
	return all
}

func TestRequest(t *testing.T) {
	t.Parallel()
	var got []item
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		var err error
		if got, err = readBulk(r.Body); err != nil {
			t.Error(err)
		}
		if r.Method != http.MethodPost || r.URL.Path != "/_bulk" || r.Header.Get("Content-Type") != "application/x-ndjson" || r.Header.Get("Authorization") != "ApiKey secret" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		_, _ = io.WriteString(w, `{"errors":false}`)
	})
	r := send(t, c,
		`{"level":"info","ts":1795867200.25,"msg":"x"}`,
		`{"@timestamp":"2026-11-28T12:00:00Z","ts":1}`,
		"{ \"a\" :\t[1,\t2] , \"@timestamp\" : false }",
		"no JSON\nat all",
	)
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	want := []string{
		`{"@timestamp":"2026-11-28T12:00:00.25Z","level":"info","msg":"x"}`,
		`{"@timestamp":"2026-11-28T12:00:00Z","ts":1}`,
		`{"@timestamp":"2026-11-28T12:00:00.000005Z","a":[1,2]}`,
		`{"@timestamp":"2026-11-28T12:00:00.000005Z","msg":"no JSON\nat all"}`,
	}
	for i, one := range got {
		if one.text != want[i] || one.index != "gate" || one.id != fmt.Sprintf("x-%d", i+1) {
			t.Errorf("got  %+v\nwant %s", one, want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d items", len(got))
	}
}

// Each entry of an answer is sent, to be sent again, or rejected, by its own status.
func TestItems(t *testing.T) {
	t.Parallel()
	c := client(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"took":1,"errors":true,"items":[
			{"create":{"status":201}},
			{"create":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"document already exists"}}},
			{"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue"}}},
			{"create":{"status":400,"error":{"type":"document_parsing_exception","reason":"failed to parse"}}},
			{"create":{"status":503,"error":{"type":"unavailable_shards_exception","reason":"primary"}}},
			{}]}`)
	})
	r := send(t, c, `{}`, `{}`, `{}`, `{}`, `{}`, `{}`)
	if !slices.Equal(ids(r.Retry), []uint64{3, 5}) || r.Rejected != 2 || !strings.Contains(r.Err.Error(), "status 429: es_rejected_execution_exception: queue") {
		t.Errorf("%+v", r)
	}
}

func TestStatuses(t *testing.T) {
	t.Parallel()
	const two = 2
	for _, c := range []struct {
		status          int
		body            string
		retry, rejected int
		err             string
	}{
		{200, `{"errors":false,"items":[]}`, 0, 0, ""},
		{200, `{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":201}}]}`, 0, 0, ""},
		{200, `{"errors":true,"items":[{"create":{"status":201}}]}`, two, 0, "the answer has 1 items, expected one for each of the 2 entries"},
		{200, `{"status":"ok"}`, two, 0, `the answer is none of the bulk API: it has no "errors"`},
		{200, `welcome`, two, 0, "the answer is none of the bulk API: "},
		{200, ``, two, 0, "the answer is none of the bulk API: "},
		{301, ``, two, 0, "status 301"},
		{400, `{"error":{"type":"illegal_argument_exception","reason":"malformed"},"status":400}`, 0, two, "status 400: illegal_argument_exception: malformed"},
		{401, `{"error":"missing authentication credentials"}`, two, 0, "status 401"},
		{403, ``, two, 0, "status 403"},
		{404, ``, two, 0, "status 404"},
		{429, strings.Repeat("x", 100000), two, 0, "status 429"},
		{502, `<html>`, two, 0, "status 502"},
		{503, `{"error":{"type":"cluster_block_exception","reason":"` + strings.Repeat("y", 1000) + `"}}`, two, 0, "status 503: cluster_block_exception: yyy"},
	} {
		t.Run(fmt.Sprint(c.status, c.err), func(t *testing.T) {
			t.Parallel()
			client := client(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			r := send(t, client, `{}`, `{}`)
			if len(r.Retry) != c.retry || r.Rejected != c.rejected || c.err != "" && (!strings.HasPrefix(r.Err.Error(), c.err) || len(r.Err.Error()) > 400) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "x": 0, "99999999999": 0,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat):  time.Hour,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
	} {
		c := client(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", value)
			w.WriteHeader(http.StatusTooManyRequests)
		})
		if r := send(t, c, `{}`); (r.After - want).Abs() > time.Minute {
			t.Errorf("%q: %v", value, r.After)
		}
	}
}

// A batch that is too large is sent in parts; one entry that is too large is rejected and the others are not.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	var got []string
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if len(body) > 300 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		items, err := readBulk(strings.NewReader(string(body)))
		if err != nil {
			t.Error(err)
		}
		for _, one := range items {
			got = append(got, one.id)
		}
		_, _ = io.WriteString(w, `{"errors":false}`)
	})
	lines := slices.Repeat([]string{`{"a":1}`}, 9)
	lines[4] = `{"a":"` + strings.Repeat("x", 300) + `"}`
	r := send(t, c, lines...)
	if r.Rejected != 1 || len(r.Retry) != 0 || !slices.Equal(got, []string{"x-1", "x-2", "x-3", "x-4", "x-6", "x-7", "x-8", "x-9"}) {
		t.Errorf("%+v, got %v", r, got)
	}
}

// A server that is away, resets, or accepts and never answers leaves the batch to be sent again.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away := client(t, nil)
	away.URL = "http://" + ln.Addr().String() + "/_bulk?secret=hidden"
	ln.Close()
	if r := send(t, away, `{}`); len(r.Retry) != 1 || !strings.Contains(r.Err.Error(), "connection refused") {
		t.Errorf("%+v", r)
	}

	resets := client(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	})
	if r := send(t, resets, `{}`, `{}`); len(r.Retry) != 2 {
		t.Errorf("%+v", r)
	}

	held := make(chan struct{})
	stalls := client(t, func(http.ResponseWriter, *http.Request) { <-held })
	t.Cleanup(func() { close(held) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if r := stalls.Send(ctx, batch(`{}`)); len(r.Retry) != 1 || !errors.Is(r.Err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
		t.Errorf("%+v", r)
	}
}

// What a server answers may repeat the credentials that it was sent: no error has them.
func TestEchoedCredentials(t *testing.T) {
	t.Parallel()
	const password = "pass:word"
	basic := base64.StdEncoding.EncodeToString([]byte("elastic:" + password))
	for _, authorization := range []string{"ApiKey VuaCfGcBCdbkQm", "Basic " + basic} {
		for name, answer := range map[string]string{
			"reason":   "HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n" + `{"error":{"type":"%[2]s","reason":"%[2]s"}}`,
			"cut":      "HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n" + `{"error":{"type":"x","reason":"` + strings.Repeat("x", 195) + `%[2]s"}}`,
			"item":     "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" + `{"errors":true,"items":[{"create":{"status":400,"error":{"type":"x","reason":"%[2]s"}}}]}`,
			"header":   "HTTP/1.1 200 OK\r\n%[2]s\r\n\r\n",
			"no HTTP":  "%[2]s\r\n\r\n",
			"a status": "HTTP/1.1 %[2]s\r\n\r\n",
		} {
			echo := authorization + " secret=hidden"
			if strings.HasPrefix(authorization, "Basic ") {
				echo += " elastic:" + password + " " + password
			}
			c := client(t, func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				text := fmt.Sprintf(answer, 1000000, echo)
				if _, body, found := strings.Cut(text, "\r\n\r\n"); found && strings.Contains(answer, "%d") {
					text = strings.Replace(text, "1000000", strconv.Itoa(len(body)), 1)
				}
				_, _ = io.WriteString(conn, text)
			})
			c.Authorization = authorization
			r := send(t, c, `{}`)
			_, credentials, _ := strings.Cut(authorization, " ")
			if r.Err == nil || strings.Contains(r.Err.Error(), credentials[:8]) || strings.Contains(r.Err.Error(), "pass:") {
				t.Errorf("%s: %v", name, r.Err)
			}
		}
	}
}

// What becomes a document is what was written, in one line, with a time.
func FuzzDocument(f *testing.F) {
	for _, seed := range []string{`{"ts":1795867200.25,"msg":"x"}`, "x\ny", `{"@timestamp":1,"ts":2}`, `{}`, `{"a":"\n"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		c := Client{Index: "gate", IDs: "x-"}
		if err := c.write([]delivery.Entry{{Line: line, Arrived: time.Unix(1, 0), ID: 1}}); err != nil {
			t.Fatal(err)
		}
		items, err := readBulk(&c.body)
		if err != nil && strings.Contains(err.Error(), "cannot unmarshal number") {
			return // which no float64 has
		}
		if err != nil || len(items) != 1 || items[0].document["@timestamp"] == nil {
			t.Fatalf("%q: %v, %v", line, items, err)
		}
		var before map[string]any
		if json.Unmarshal(line, &before) != nil || before == nil {
			return
		}
		for name, value := range before {
			after, ok := items[0].document[name]
			if name != "ts" && name != "@timestamp" && (!ok || fmt.Sprint(after) != fmt.Sprint(value)) {
				t.Fatalf("%q: %q is %v", line, name, after)
			}
		}
	})
}
