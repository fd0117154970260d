package logging

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

func TestCaddyfileOfRemoteWriters(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{
		"output fluent 10.0.0.5":                                           `{"address":"10.0.0.5","output":"fluent"}`,
		"output fluent unix//run/fluent.sock {\n no_ack\n}":                `{"address":"unix//run/fluent.sock","no_ack":true,"output":"fluent"}`,
		"output fluent a:1 {\n tag x\n shared_key k\n user u p\n}":         `{"address":"a:1","output":"fluent","password":"p","shared_key":"k","tag":"x","user":"u"}`,
		"output fluent a:1 {\n tls\n}":                                     `{"address":"a:1","output":"fluent","tls":{}}`,
		"output fluent a:1 {\n queue 5\n flush_interval 0\n timeout 3s\n}": `{"address":"a:1","flush_interval":0,"output":"fluent","queue":5,"timeout":3000000000}`,
		"output fluent a:1 {\n tls {\n server_name s\n ca c d\n client_certificate c k\n insecure_skip_verify\n }\n}": `{"address":"a:1","output":"fluent",` +
			`"tls":{"ca":["c","d"],"client_certificate":{"certificate":"c","key":"k"},"insecure_skip_verify":true,"server_name":"s"}}`,
		"output elasticsearch https://a:9200":                                        `{"output":"elasticsearch","url":"https://a:9200"}`,
		"output elasticsearch https://a {\n index i\n basic_auth u {env.P}\n tls\n}": `{"index":"i","output":"elasticsearch","password":"{env.P}","tls":{},"url":"https://a","user":"u"}`,
		"output elasticsearch https://a {\n api_key k\n queue 7\n}":                  `{"api_key":"k","output":"elasticsearch","queue":7,"url":"https://a"}`,
	} {
		got, err := adapt(input)
		if want = `{"logging":{"logs":{"default":{"writer":` + want + `}}}}`; err != nil || got != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", input, got, err, want)
		}
	}
	for input, want := range map[string]string{
		"output fluent":                                       `fluent: expected the address of a collector, such as 10.0.0.5:24224`,
		"output fluent a b":                                   `"a b": expected one address`,
		"output fluent a {\n index x\n}":                      `unknown option "index": expected one of tag, shared_key, user, no_ack, tls, queue, flush_interval, timeout`,
		"output fluent a {\n shared_key hidden1 hidden2\n}":   `shared_key: expected 1 value`,
		"output fluent a {\n user hidden\n}":                  `user: expected a name and a password`,
		"output fluent a {\n queue 0\n}":                      `queue: "0": expected a whole number from 1 to 1000000`,
		"output fluent a {\n flush_interval x\n}":             `flush_interval: "x": expected a duration such as 30s`,
		"output fluent a {\n timeout 0s\n}":                   `timeout: "0s": expected a duration of more than 0`,
		"output fluent a {\n tls {\n alpn h2\n }\n}":          `unknown option "alpn": expected one of server_name, ca, client_certificate, insecure_skip_verify`,
		"output elasticsearch":                                `elasticsearch: expected the URL of a server, such as https://localhost:9200`,
		"output elasticsearch https://a https://u:hidden@b":   `expected one URL`,
		"output elasticsearch a {\n basic_auth u hidden x\n}": `basic_auth: expected a user and a password`,
		"output elasticsearch a {\n api_key\n}":               `api_key: expected 1 value`,
		"output elasticsearch a {\n tag x\n}":                 `unknown option "tag": expected one of index, basic_auth, api_key, tls, queue, flush_interval, timeout`,
	} {
		if _, err := adapt(input); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
}

func TestJSONOfRemoteWriters(t *testing.T) {
	noPEM := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(noPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for input, want := range map[string]string{
		`{"output": "fluent"}`:                                                                                      `address: "": expected the address of a collector`,
		`{"output": "fluent", "address": ":24224"}`:                                                                 `address: ":24224": expected the address of a collector`,
		`{"output": "fluent", "address": "a:1-2"}`:                                                                  `address: "a:1-2": expected the address of a collector`,
		`{"output": "fluent", "address": "udp/a:1"}`:                                                                `address: "udp/a:1": expected the address of a collector`,
		`{"output": "fluent", "address": "a:1", "hidden": 1, "x": 1}`:                                               `unknown option`,
		`{"output": "fluent", "address": "a:1", "queue": -1}`:                                                       `queue: "-1": expected a whole number from 1 to 1000000`,
		`{"output": "fluent", "address": "a:1", "queue": "x"}`:                                                      `queue: "x": expected a whole number`,
		`{"output": "fluent", "address": "a:1", "timeout": -1}`:                                                     `timeout: "-1": expected a duration of 0 or more`,
		`{"output": "fluent", "address": "a:1", "shared_key": ["hidden"]}`:                                          `shared_key: expected a string`,
		`{"output": "fluent", "address": "a:1", "shared_key": "{env.GATE_NOT_SET}"}`:                                `shared_key: expected a secret, or a placeholder of one such as {env.LOG_KEY} that is set`,
		`{"output": "fluent", "address": "a:1", "shared_key": "hidden\u0000"}`:                                      `shared_key: expected a secret without control characters`,
		`{"output": "fluent", "address": "a:1", "user": "u", "password": "hidden"}`:                                 `user: "u": expected a shared_key`,
		`{"output": "fluent", "address": "a:1", "tls": {"ca": ["/no/such"]}}`:                                       `tls: ca: open /no/such: no such file or directory`,
		`{"output": "fluent", "address": "a:1", "tls": {"ca": ["` + noPEM + `"]}}`:                                  `expected a file with certificates in PEM form`,
		`{"output": "fluent", "address": "a:1", "tls": {"ca": ["x"], "insecure_skip_verify": true}}`:                `tls: ca: "x": expected no insecure_skip_verify, which accepts any certificate`,
		`{"output": "fluent", "address": "a:1", "tls": {"client_certificate": {"certificate": "/c", "key": "/k"}}}`: `tls: client_certificate: "/c", "/k": open /c`,
		`{"output": "fluent", "address": "unix//a", "tls": {}}`:                                                     `tls: server_name: "": expected a name or an IP address`,
		`{"output": "elasticsearch"}`:                                                                               `url: "": expected a URL such as https://localhost:9200`,
		`{"output": "elasticsearch", "url": "localhost:9200"}`:                                                      `url: "localhost:9200": expected a URL such as https://localhost:9200`,
		`{"output": "elasticsearch", "url": "https://u:hidden@a"}`:                                                  `url: expected no user and no password in it`,
		`{"output": "elasticsearch", "url": "https://u:hidden@a:x"}`:                                                `url: "https://***@a:x": expected a URL`,
		`{"output": "elasticsearch", "url": "http://a", "tls": {}}`:                                                 `tls: expected a URL that begins with https, but there is "http://a"`,
		`{"output": "elasticsearch", "url": "http://a", "index": "A"}`:                                              `index: "A": expected the name of a data stream, an index or an alias, in small letters`,
		`{"output": "elasticsearch", "url": "http://a", "index": "a/_doc"}`:                                         `index: "a/_doc": expected the name`,
		`{"output": "elasticsearch", "url": "http://a", "api_key": "hidden", "user": "u"}`:                          `api_key: expected no user besides`,
		`{"output": "elasticsearch", "url": "http://a", "user": "u"}`:                                               `user: "u": expected a password with it`,
		`{"output": "elasticsearch", "url": "http://a", "password": {"hidden": 1}}`:                                 `password: expected a string`,
		`{"output": "elasticsearch", "url": "http://a", "api_key": "{file./no/such/file}"}`:                         `api_key: expected a secret`,
	} {
		if err := load(input); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") && !strings.Contains(input, `"hidden": 1, "x"`) {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
}

// Secrets are in nothing that Caddy may print of a writer.
func TestSecretsAreNotShown(t *testing.T) {
	t.Setenv("GATE_LOG_KEY", "hidden-of-the-environment")
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("hidden-of-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	for _, module := range []caddy.WriterOpener{
		&FluentWriter{Address: "127.0.0.1:1", SharedKey: "{env.GATE_LOG_KEY}", User: "u", Password: Secret("{file." + file + "}")},
		&ElasticsearchWriter{URL: "http://127.0.0.1:1?key=hidden", User: "u", Password: "hidden"},
		&ElasticsearchWriter{URL: "http://127.0.0.1:1", APIKey: "{env.GATE_LOG_KEY}"},
	} {
		if err := module.(caddy.Provisioner).Provision(ctx); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = module.(caddy.CleanerUpper).Cleanup() })
		for _, text := range []string{module.String(), module.WriterKey(), fmt.Sprintf("%#v", module)} {
			if strings.Contains(text, "hidden") || !strings.Contains(text, "127.0.0.1:1") {
				t.Errorf("%s", text)
			}
		}
		if w, ok := module.(*FluentWriter); ok && (w.client.SharedKey != "hidden-of-the-environment" || w.client.Password != "hidden-of-a-file") {
			t.Errorf("%+v", w.client)
		}
	}
}

// Writers that differ in any option are different ones, and those that differ in none are one.
func TestWriterKeys(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	keys := make(map[string]string)
	for _, options := range []string{
		``, `,"tag":"x"`, `,"shared_key":"a"`, `,"shared_key":"b"`, `,"shared_key":"b","user":"u","password":"p"`, `,"no_ack":true`, `,"tls":{}`,
		`,"tls":{"server_name":"x"}`, `,"queue":5`, `,"flush_interval":0`, `,"timeout":1`,
	} {
		for range 2 {
			w := new(FluentWriter)
			if err := json.Unmarshal([]byte(`{"address":"a:1"`+options+`}`), w); err != nil {
				t.Fatal(err)
			}
			if err := w.Provision(ctx); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.Cleanup() })
			if other, ok := keys[w.WriterKey()]; ok && other != options {
				t.Errorf("%q and %q have the same key", options, other)
			}
			keys[w.WriterKey()] = options
		}
	}
	if len(keys) != 11 {
		t.Errorf("%d keys", len(keys))
	}
}

// store is a server with the bulk API.
type store struct {
	*httptest.Server
	mu     sync.Mutex
	status int // of answers; 0: all is well
	got    []string
}

func newStore(t *testing.T) *store {
	t.Helper()
	s := new(store)
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status != 0 {
		w.WriteHeader(s.status)
		return
	}
	lines := bufio.NewScanner(r.Body)
	for action := true; lines.Scan(); action = !action {
		if !action {
			s.got = append(s.got, lines.Text())
		}
	}
	_, _ = io.WriteString(w, `{"errors":false}`)
}

func (s *store) answers(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

func (s *store) count(part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.got {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

// waitFor waits for what should come soon.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
	}
}

// open is how many writers send.
func open() int {
	sends.mu.Lock()
	defer sends.mu.Unlock()
	return len(sends.all)
}

// A writer outlives reloads of the same config, one that is replaced sends what it has, nothing is left of it, and each entry is counted.
func TestReloads(t *testing.T) {
	waitFor(t, "writers of other tests to end", func() bool { return open() == 0 })
	s := newStore(t)
	writer := func(more string) string {
		return fmt.Sprintf(`{"output": "elasticsearch", "url": %q, "queue": 1000%s}`, s.URL, more)
	}
	t.Cleanup(func() {
		if err := load(`{"output": "discard"}`); err != nil {
			t.Error(err)
		}
		waitFor(t, "all writers to end", func() bool { return open() == 0 })
	})
	name := "elasticsearch " + s.URL
	counted := func() (sent, waiting float64) {
		return testutil.ToFloat64(sentTotal.WithLabelValues(name)), testutil.ToFloat64(waitingNow.WithLabelValues(name))
	}
	const reloads = 100
	for i := range reloads {
		if err := load(writer("")); err != nil {
			t.Fatal(err)
		}
		caddy.Log().Info("entry")
		if n := open(); n != 1 {
			t.Fatalf("%d writers after %d reloads", n, i)
		}
	}
	if err := load(`{"output": "fluent", "address": ""}`); err == nil {
		t.Fatal("a wrong config is loaded")
	}
	s.answers(http.StatusServiceUnavailable)
	if err := load(writer(`, "flush_interval": 0`)); err != nil {
		t.Fatal(err)
	}
	caddy.Log().Info("entry")
	s.answers(0)
	waitFor(t, "all entries", func() bool { return s.count(`"msg":"entry"`) == reloads+1 })
	waitFor(t, "the writer before to end", func() bool { return open() == 1 })
	waitFor(t, "nothing to wait", func() bool { _, waiting := counted(); return waiting == 0 })
	if sent, _ := counted(); int(sent) != s.count("") {
		t.Errorf("%v are counted, the server has %d", sent, s.count(""))
	}
}

// What is lost is counted exactly, by cause, and who logs does not wait.
func TestLostEntriesAreCounted(t *testing.T) {
	s := newStore(t)
	s.answers(http.StatusTooManyRequests)
	t.Cleanup(func() {
		if err := load(`{"output": "discard"}`); err != nil {
			t.Error(err)
		}
	})
	if err := load(fmt.Sprintf(`{"output": "elasticsearch", "url": %q, "queue": 20, "flush_interval": 0}`, s.URL)); err != nil {
		t.Fatal(err)
	}
	name := "elasticsearch " + s.URL
	dropped := func(reason string) float64 { return testutil.ToFloat64(droppedTotal.WithLabelValues(name, reason)) }
	before := logqueue.Dropped()
	for range 500 {
		caddy.Log().Info("entry")
	}
	lost := logqueue.Dropped() - before
	waiting, full := testutil.ToFloat64(waitingNow.WithLabelValues(name)), dropped("queue_full")
	if waiting != 20 || full < 480 || lost < 480 {
		t.Errorf("%v wait, %v are dropped, %d in all", waiting, full, lost)
	}
	s.answers(0)
	waitFor(t, "what waits", func() bool { return testutil.ToFloat64(waitingNow.WithLabelValues(name)) == 0 })
	if sent := testutil.ToFloat64(sentTotal.WithLabelValues(name)); int(sent) != s.count("") {
		t.Errorf("%v are sent, the server has %d", sent, s.count(""))
	}
	s.answers(http.StatusBadRequest)
	caddy.Log().Info("entry")
	waitFor(t, "it to be rejected", func() bool { return dropped("rejected") >= 1 })
}
