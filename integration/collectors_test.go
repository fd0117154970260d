package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// collectorBinary returns a log collector that others wrote, from tools/collectors.
func collectorBinary(t testing.TB, name, pkg string) string {
	t.Helper()
	if dir := os.Getenv("PORTGATE_COMPILED"); dir != "" {
		return filepath.Join(dir, name)
	}
	path := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-o", path, pkg)
	cmd.Dir = filepath.Join("..", "tools", "collectors")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return path
}

// collector is a process that a test starts and stops.
type collector struct {
	args   []string
	stdout string // the file that it appends to
}

// start returns what stops it.
func (c *collector) start(t testing.TB) (stop func()) {
	t.Helper()
	stdout, err := os.OpenFile(c.stdout, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	must(t, err)
	defer stdout.Close()
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// linesOf returns the JSON objects in the lines of a text.
func linesOf(t testing.TB, text []byte) (all []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(text) {
		var object map[string]any
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		if err := json.Unmarshal(line, &object); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, object)
	}
	return all
}

// toBoth sends the access log to a collector and to a file, and everything else to stderr.
func toBoth(config, writer gate.JSON, file string) gate.JSON {
	config = accessLogTo(config, writer)
	logs := config["logging"].(gate.JSON)["logs"].(gate.JSON)
	logs["file"] = gate.JSON{"include": []string{"layer4.log.access"}, "writer": gate.JSON{"output": "file", "filename": file, "roll": false}, "encoder": gate.JSON{"format": "json"}}
	return config
}

// tried is a collector that entries are sent to.
type tried struct {
	collector
	writer gate.JSON
	got    func() []map[string]any // what it has; each with the fields of an entry
}

// everyEntryArrives has sessions served and denied, while the collector runs, while it does not, and as the process stops. Each entry arrives as
// it is written to a file.
func everyEntryArrives(t *testing.T, c tried) {
	t.Helper()
	const each = 20
	addr, file := gate.ReserveAddr(t), filepath.Join(t.TempDir(), "sessions.log")
	p := gate.Start(t, toBoth(denying(addr, serve(t, echo)), c.writer, file))
	sessions := func() {
		t.Helper()
		for range each {
			must(t, bothKinds(addr))
		}
	}
	want := 0
	arrive := func() {
		t.Helper()
		want += 2 * each
		gate.Eventually(t, time.Minute, func() error {
			if n := len(c.got()); n < want {
				return fmt.Errorf("the collector has %d entries, want %d", n, want)
			}
			return nil
		})
	}
	sessions() // before it is there
	stop := c.start(t)
	arrive()
	sessions()
	arrive()
	stop()
	sessions()
	p.Load(toBoth(denying(addr, serve(t, echo)), c.writer, file)) // a reload in between
	c.start(t)
	arrive()
	sessions()
	p.Terminate()
	if code := p.Wait(peerTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	arrive()
	written, err := os.ReadFile(file)
	must(t, err)
	mustHaveAll(t, linesOf(t, written), c.got())
}

// mustHaveAll holds that entries are the same, by the ids of their sessions. A collector may have some of them twice.
func mustHaveAll(t *testing.T, written, got []map[string]any) {
	t.Helper()
	byID := make(map[any]map[string]any)
	for _, entry := range got {
		byID[entry["session_id"]] = entry
	}
	if len(byID) != len(written) {
		t.Errorf("%d entries of %d sessions, %d were written", len(got), len(byID), len(written))
	}
	for _, entry := range written {
		arrived := byID[entry["session_id"]]
		for name, value := range entry {
			if name == "ts" {
				continue // it is the time of the record
			}
			if got := arrived[name]; !sameValue(got, value) {
				t.Fatalf("%s is %v, want %v in %v", name, got, value, arrived)
			}
		}
	}
}

// sameValue compares with what was written. VictoriaLogs has texts for numbers, and nothing for an empty text.
func sameValue(got, written any) bool {
	if text, ok := got.(string); ok {
		if number, ok := written.(float64); ok {
			parsed, err := strconv.ParseFloat(text, 64)
			return err == nil && math.Abs(parsed-number) <= 1e-9*math.Abs(number)
		}
	}
	return got == nil && written == "" || fmt.Sprint(got) == fmt.Sprint(written)
}

func TestOpenTelemetryCollector(t *testing.T) {
	t.Parallel()
	addr, out := gate.ReserveAddr(t), filepath.Join(t.TempDir(), "out")
	everyEntryArrives(t, tried{
		collector: collector{[]string{collectorBinary(t, "otel", "./otel"), addr}, out},
		writer:    gate.JSON{"output": "fluent", "address": addr, "tag": "gate", "flush_interval": "50ms"},
		got: func() (all []map[string]any) {
			text, err := os.ReadFile(out)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			for _, record := range linesOf(t, text) {
				fields := record["attributes"].(map[string]any)
				at, err := time.Parse(time.RFC3339Nano, record["time"].(string))
				if since := math.Abs(float64(at.UnixNano())/1e9 - fields["ts"].(float64)); err != nil || since > 1e-5 || fields["fluent.tag"] != "gate" {
					t.Fatalf("%v: %v", record, err)
				}
				all = append(all, fields)
			}
			return all
		},
	})
}

func TestVictoriaLogs(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	ask := "http://" + addr + "/select/logsql/query?limit=10000&query=" + url.QueryEscape(`logger:="layer4.log.access"`)
	everyEntryArrives(t, tried{
		collector: collector{[]string{
			collectorBinary(t, "victoria-logs", "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs"),
			"-httpListenAddr=" + addr, "-storageDataPath=" + t.TempDir(), "-loggerLevel=ERROR",
		}, filepath.Join(t.TempDir(), "out")},
		writer: gate.JSON{
			"output": "elasticsearch", "flush_interval": "50ms",
			"url": "http://" + addr + "/insert/elasticsearch?_msg_field=msg&_time_field=@timestamp&_stream_fields=logger,listener",
		},
		got: func() (all []map[string]any) {
			response, err := http.Get(ask)
			if err != nil {
				return nil // it does not run
			}
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != http.StatusOK {
				return nil
			}
			for _, entry := range linesOf(t, text) {
				if _, err := time.Parse(time.RFC3339Nano, entry["_time"].(string)); err != nil {
					t.Fatal(err)
				}
				entry["msg"] = entry["_msg"]
				all = append(all, entry)
			}
			return all
		},
	})
}

// bulkServer takes what the bulk API gets.
type bulkServer struct {
	mu  sync.Mutex
	got []map[string]any
}

func (s *bulkServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := bufio.NewScanner(r.Body)
	for action := true; lines.Scan(); action = !action {
		var object map[string]any
		if err := json.Unmarshal(lines.Bytes(), &object); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if !action {
			s.got = append(s.got, object)
		}
	}
	_, _ = io.WriteString(w, `{"errors":false}`)
}

func (s *bulkServer) entries() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[:len(s.got):len(s.got)]
}

// indexTemplate returns the types of the fields in deploy/elasticsearch.
func indexTemplate(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile("../deploy/elasticsearch/index-template.json")
	must(t, err)
	var template struct {
		Template struct {
			Mappings struct {
				Properties map[string]struct{ Type string }
			}
		}
	}
	must(t, json.Unmarshal(data, &template))
	types := make(map[string]string)
	for name, field := range template.Template.Mappings.Properties {
		types[name] = field.Type
	}
	return types
}

// fits tells whether Elasticsearch takes a value for a field of this type.
func fits(kind string, value any) bool {
	if list, ok := value.([]any); ok {
		return len(list) > 0 && fits(kind, list[0])
	}
	switch text, isText := value.(string); kind {
	case "keyword", "text":
		return isText
	case "ip":
		_, err := netip.ParseAddr(text)
		return err == nil
	case "date":
		_, err := time.Parse(time.RFC3339Nano, text)
		return err == nil
	}
	number, ok := value.(float64)
	limit := map[string]float64{"short": 1 << 15, "integer": 1 << 31, "long": 1 << 63, "double": math.Inf(1)}[kind]
	return ok && (kind == "double" || number == math.Trunc(number)) && math.Abs(number) < limit
}

// The index template has each field that the access log writes, with a type that takes it, and no field that it does not write.
func TestIndexTemplateHasWhatIsWritten(t *testing.T) {
	t.Parallel()
	store := new(bulkServer)
	server := httptest.NewServer(store)
	t.Cleanup(server.Close)
	served, dead, datagrams := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	refuses := []string{gate.ReserveAddr(t), gate.ReserveAddr(t)}
	acl := gate.JSON{"handler": "acl", "rules": []gate.JSON{{"deny": []string{"127.0.0.2"}}}}
	upstream := serveUDP(t, func(_ netip.AddrPort, b []byte) []byte { return b })
	config := gate.Layer4(gate.Listen(served, acl, gate.Forward(serve(t, echo))), gate.Listen(dead, gate.Forward(refuses...)), gate.ListenUDP(datagrams, gate.Forward(upstream))).
		WithApp("portgate", gate.JSON{"access_log": gate.JSON{"sample": gate.JSON{"403": "1/s"}}})
	p := gate.Start(t, accessLogTo(config, gate.JSON{"output": "elasticsearch", "url": server.URL, "flush_interval": 0}))
	must(t, oneRequest(served))
	if in, err := letIn("127.0.0.1", dead); in || err != nil {
		t.Fatal(in, err)
	}
	mustAnswerUDP(t, datagrams, peerTimeout)

	types, seen := indexTemplate(t), make(map[string]bool)
	gate.Eventually(t, time.Minute, func() error {
		if _, err := letIn("127.0.0.2", served); err != nil { // until one says how many were skipped
			return err
		}
		for _, entry := range store.entries() {
			for name, value := range entry {
				if kind, ok := types[name]; !ok || !fits(kind, value) {
					t.Fatalf("the template has the type %q for %s, which is %v in %v", kind, name, value, entry)
				}
				seen[name] = true
			}
		}
		if !seen["skipped"] {
			return errors.New("nothing is skipped")
		}
		return nil
	})
	p.Terminate() // which ends the session of UDP
	p.Wait(peerTimeout)
	for _, entry := range store.entries() {
		for name := range entry {
			seen[name] = true
		}
	}
	for name := range types {
		if !seen[name] {
			t.Errorf("the template has the field %s, which no entry had", name)
		}
	}
	if !strings.Contains(fmt.Sprint(store.entries()), "layer4.log.access") {
		t.Error("the entries have no logger")
	}
}

// exampleCollectors has the collector come after the session.
func exampleCollectors(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	start()
	if page := mustGetPage(t, addr(8080)); page != "inside" {
		t.Errorf("through the port: %q", page)
	}
	got := make(chan string, 10)
	serveAt(t, addr(24224), func(conn *net.TCPConn) {
		messages := msgp.NewReader(conn)
		for {
			read, err := messages.ReadIntf()
			if err != nil {
				return
			}
			message := read.([]any) // tag, entries, options
			options := message[2].(map[string]any)
			got <- fmt.Sprint(message[0], " ", string(message[1].([]byte)))
			_, _ = conn.Write(msgp.AppendMapStrStr(nil, map[string]string{"ack": options["chunk"].(string)}))
		}
	})
	select {
	case message := <-got:
		if !strings.HasPrefix(message, "portgate ") || !strings.Contains(message, "session_id") {
			t.Errorf("%q", message)
		}
	case <-time.After(time.Minute):
		t.Error("no entry arrives")
	}
}
