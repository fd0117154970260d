package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
)

// spoken is a source that a test speaks for.
type spoken struct {
	Name  string         `json:"name"`
	Whom  string         `json:"whom"`
	Grace caddy.Duration `json:"grace"`
}

// stage is what a test has its source say.
type stage struct {
	mu      sync.Mutex
	last    any // an answer or an error; nil: nothing yet
	sinks   map[discovery.Sink]struct{}
	running atomic.Int32
	runs    atomic.Int32
}

var stages sync.Map // by name

func stageOf(name string) *stage {
	s, _ := stages.LoadOrStore(name, &stage{sinks: make(map[discovery.Sink]struct{})})
	return s.(*stage)
}

func init() { caddy.RegisterModule(new(spoken)) }

func (*spoken) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.upstreams.test_spoken", New: func() caddy.Module { return new(spoken) }}
}

func (s *spoken) Source() (discovery.Made, error) {
	if s.Name == "" {
		return discovery.Made{}, errors.New(`name: "": expected one`)
	}
	return discovery.Made{Source: stageOf(s.Name), Question: s.Name, Whom: s.Whom, Name: "test " + s.Name, GracePeriod: time.Duration(s.Grace)}, nil
}

func (s *stage) Run(ctx context.Context, to discovery.Sink) {
	s.runs.Add(1)
	s.running.Add(1)
	defer s.running.Add(-1)
	s.mu.Lock()
	say(to, s.last)
	s.sinks[to] = struct{}{}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	delete(s.sinks, to)
	s.mu.Unlock()
}

func say(to discovery.Sink, what any) {
	switch what := what.(type) {
	case discovery.Answer:
		to.Answer(what)
	case error:
		to.Failed(what)
	}
}

// says has the source report something to all who have asked it, and to those that will.
func (s *stage) says(what any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = what
	for to := range s.sinks {
		say(to, what)
	}
}

// lists is an answer with these upstreams, each in the form of a line of a file.
func lists(t testing.TB, lines ...string) discovery.Answer {
	t.Helper()
	answer, err := discovery.Parse([]byte(strings.Join(lines, "\n")), true)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

var errAway = errors.New("it is away")

// dynamicTo is the config of a handler with the test's source and these options.
func dynamicTo(t *testing.T, options string) (*stage, string) {
	t.Helper()
	return stageOf(t.Name()), fmt.Sprintf(`{"dynamic": [{"source": "test_spoken", "name": %q}]%s}`, t.Name(), options)
}

// What a source says is where sessions go from then on; those that live stay where they are.
func TestDynamicUpstreams(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
		source, config := dynamicTo(t, "")
		source.says(lists(t, a))
		h, _, _ := provision(t, config)
		first := k.client(t, h)
		read(t, first, "a")
		source.says(lists(t, b))
		second := k.client(t, h)
		read(t, second, "b")
		exchange(t, first, "still here")
		source.says(errAway)
		source.says(discovery.Answer{})
		source.says(lists(t, "garbage", "127.0.0.1:70000"))
		third := k.client(t, h)
		read(t, third, "b")
		source.says(lists(t, a, b+" weight=0", "garbage"))
		fourth := k.client(t, h)
		read(t, fourth, "a")
		for _, client := range []*net.TCPConn{first, second, third, fourth} {
			if got := finish(t, client); got.Status != 200 {
				t.Errorf("%+v", got)
			}
		}
	})
}

// Upstreams of the config come first, and what they have is not taken from a source. Tiers may have gaps.
func TestDynamicAndFixed(t *testing.T) {
	t.Parallel()
	a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
	source, config := dynamicTo(t, fmt.Sprintf(`, "upstreams": [{"address": %q, "priority": 7}]`, a))
	h, _, _ := provision(t, config)
	next := func() string {
		conn, accepted := connect(t)
		handle(t, h, accepted)
		got := make([]byte, 1)
		_, _ = io.ReadFull(conn, got)
		finish(t, conn)
		return string(got)
	}
	if got := next(); got != "a" {
		t.Errorf("before there is an answer: %q", got)
	}
	source.says(lists(t, b+" priority=90", a+" weight=5"))
	eventually(t, func() error { // a source holds up nobody, and nobody a source
		if n := h.rosters.now.Load().pool.Len(); n != 2 {
			return fmt.Errorf("%d upstreams with a backup", n)
		}
		return nil
	})
	if got := next() + next(); got != "aa" {
		t.Errorf("with a backup: %q", got)
	}
	source.says(lists(t, b+" priority=2"))
	eventually(t, func() error {
		if got := next(); got != "b" {
			return fmt.Errorf("as a backup: %q", got)
		}
		return nil
	})
	if got := next() + next(); got != "bb" {
		t.Errorf("as a backup: %q", got)
	}
	if n := h.rosters.now.Load().pool.Len(); n != 2 {
		t.Errorf("%d upstreams", n)
	}
}

// A session that comes before the first answer waits for it, and is refused if none comes.
func TestDynamicFirstAnswer(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		a := named(t, "127.0.0.1:0", "a")
		source, config := dynamicTo(t, `, "connect_timeout": "1m"`)
		source.says(errAway)
		h, _, _ := provision(t, config)
		waiting := k.client(t, h)
		source.says(lists(t, a))
		read(t, waiting, "a")
		finish(t, waiting)
	})
	overKinds(t, func(t *testing.T, k kind) {
		_, config := dynamicTo(t, `, "connect_timeout": "50ms"`)
		h, _, _ := provision(t, config)
		refused := k.client(t, h)
		if _, err := io.ReadAll(refused); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v", err)
		}
		if got := logged(t, refused); got.Status != 502 || got.Reason != "no_upstream" || got.Error != "none was discovered: no upstream may get sessions" {
			t.Errorf("%+v", got)
		}
	})
}

// Sessions of an upstream that has gone end after drain_timeout, those of others and those of one that came back do not.
func TestDynamicDrains(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
		source, config := dynamicTo(t, `, "drain_timeout": "300ms"`)
		source.says(lists(t, a))
		h, _, _ := provision(t, config)
		gone := k.client(t, h)
		read(t, gone, "a")
		source.says(lists(t, b))
		stays := k.client(t, h)
		read(t, stays, "b")
		source.says(lists(t, a, b))
		source.says(lists(t, b))
		begun := time.Now()
		if _, err := io.ReadAll(gone); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 250*time.Millisecond {
			t.Errorf("closed after %v", took)
		}
		if got := logged(t, gone); got.Reason != "drain" || got.Status != 200 {
			t.Errorf("%+v", got)
		}
		exchange(t, stays, "still here")
		finish(t, stays)
	})
}

// All handlers of all configs share one source, which knows after a reload what it knew before.
func TestDynamicReloads(t *testing.T) {
	a := named(t, "127.0.0.1:0", "a")
	source, _ := dynamicTo(t, "")
	source.says(lists(t, a))
	handler := object{"handler": "forward", "dynamic": []object{{"source": "test_spoken", "name": t.Name()}}}
	addr, other := newHost()+":7000", newHost()+":7000"
	config := object{"a": server(handler, "tcp/"+addr), "b": server(handler, "tcp/"+other)}
	mustLoad(t, config)
	conn := dial(t, addr)
	read(t, conn, "a")
	source.says(nil) // from now on only what is known helps
	for i := range 100 {
		if i%10 == 9 {
			broken := object{"a": config["a"], "b": config["b"], "c": server(to(nil), "tcp/"+newHost()+":7000")}
			if err := load(object{"layer4": object{"servers": broken}}); err == nil {
				t.Fatal("a wrong config was loaded")
			}
		} else if err := load(object{"layer4": object{"servers": config}}); err != nil {
			t.Fatal(err)
		}
		client := dial(t, other)
		read(t, client, "a")
		finish(t, client)
	}
	exchange(t, conn, "still here")
	finish(t, conn)
	if runs, running := source.runs.Load(), source.running.Load(); runs != 1 || running != 1 {
		t.Errorf("the source was run %d times, and %d run", runs, running)
	}
	if err := load(nil); err != nil {
		t.Fatal(err)
	}
	if running := source.running.Load(); running != 0 {
		t.Errorf("%d run without a config", running)
	}
}

// A Provision that fails has let go of its sources, whichever of them is wrong.
func TestDynamicProvisionFails(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"dynamic": [{"source": "test_spoken", "name": %q}, {"source": "test_spoken"}]}`:                        `dynamic: test_spoken: name: "": expected one`,
		`{"dynamic": [{"source": "test_spoken", "name": %q}, {"source": "nothing"}]}`:                            `unknown module: layer4.upstreams.nothing`,
		`{"dynamic": [{"source": "test_spoken", "name": %q}], "to": ["127.0.0.1:1"], "tls": {"ca": "/nowhere"}}`: `/nowhere`,
	} {
		source := stageOf(t.Name())
		_, _, unload, err := tryProvision(t, fmt.Sprintf(config, t.Name()))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", config, err, want)
		}
		unload()
		if running := source.running.Load(); running != 0 {
			t.Errorf("%s: %d run", config, running)
		}
	}
}

// A start at which the source fails uses what an earlier process has stored, if that is what was stored.
func TestDynamicRestart(t *testing.T) {
	a := named(t, "127.0.0.1:0", "a")
	source, config := dynamicTo(t, `, "connect_timeout": "50ms"`)
	source.says(lists(t, a+" weight=3"))
	h, _, unload := provision(t, config)
	client, accepted := connect(t)
	handle(t, h, accepted)
	read(t, client, "a")
	finish(t, client)
	unload() // which stores what is not stored

	source.says(errAway)
	h, _, unload = provision(t, config)
	client, accepted = connect(t)
	handle(t, h, accepted)
	read(t, client, "a")
	finish(t, client)
	unload()

	files, err := filepath.Glob(filepath.Join(storageRoot, "portgate", "upstreams", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("stored: %v, %v", files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(content), `"weight":3`, `"weight":4`, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, _, _ = provision(t, config)
	client, accepted = connect(t)
	handle(t, h, accepted)
	if _, err := io.ReadAll(client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what is stored was changed, and used: %v", err)
	}
	logged(t, client)
}

// An upstream that leads back to the listener is not used, whoever has discovered it.
func TestDynamicLoop(t *testing.T) {
	a := named(t, "127.0.0.1:0", "a")
	source, _ := dynamicTo(t, "")
	addr := newHost() + ":7000"
	source.says(lists(t, addr, "udp/127.0.0.1:9", a))
	handler := object{"handler": "forward", "dynamic": []object{{"source": "test_spoken", "name": t.Name()}}}
	mustLoad(t, object{"a": server(handler, "tcp/"+addr)})
	for range 5 {
		conn := dial(t, addr)
		read(t, conn, "a")
		if got := finish(t, conn); got.Failed != "" {
			t.Errorf("%+v", got)
		}
	}
}

// A source after its grace period is used where there is nothing else, and only there.
func TestDynamicExpires(t *testing.T) {
	t.Parallel()
	a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
	source := stageOf(t.Name())
	source.says(lists(t, a))
	dynamic := fmt.Sprintf(`{"dynamic": [{"source": "test_spoken", "name": %q, "grace": "100ms"}]`, t.Name())
	alone, _, _ := provision(t, dynamic+`}`)
	mixed, _, _ := provision(t, dynamic+fmt.Sprintf(`, "upstreams": [{"address": %q, "priority": 1}]}`, b))
	answers := func(h *Handler) string {
		conn, accepted := connect(t)
		handle(t, h, accepted)
		got := make([]byte, 1)
		_, _ = io.ReadFull(conn, got)
		finish(t, conn)
		return string(got)
	}
	if got := answers(alone) + answers(mixed); got != "aa" {
		t.Errorf("got %q", got)
	}
	source.says(errAway)
	eventually(t, func() error {
		if got := answers(mixed); got != "b" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	if got := answers(alone); got != "a" {
		t.Errorf("nothing is left: %q", got)
	}
	source.says(lists(t, a))
	if got := answers(alone) + answers(mixed); got != "aa" {
		t.Errorf("it is back: %q", got)
	}
}

func TestFileUpstreams(t *testing.T) {
	t.Parallel()
	a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
	path := filepath.Join(t.TempDir(), "upstreams")
	h, _, _ := provision(t, fmt.Sprintf(`{"dynamic": [{"source": "file", "path": %q}], "connect_timeout": "1m"}`, path))
	client, accepted := connect(t)
	handle(t, h, accepted) // waits for the file
	for i, upstreams := range []string{a, `["` + b + `"]`, a + "\nnonsense\n"} {
		if err := os.WriteFile(path+".new", []byte(upstreams), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{true: "b", false: "a"}[i == 1]
		if i == 0 {
			read(t, client, want)
			finish(t, client)
			continue
		}
		eventually(t, func() error {
			client, accepted := connect(t)
			handle(t, h, accepted)
			got := make([]byte, 1)
			_, err := io.ReadFull(client, got)
			finish(t, client)
			if err == nil && string(got) != want {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	}
}

// A server that has not changed its list is asked only whether it has, and a server that fails leaves the list.
func TestURLUpstreams(t *testing.T) {
	t.Parallel()
	a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
	var list atomic.Value
	var sent, unchanged, failed atomic.Int32
	list.Store(a)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := list.Load().(string)
		switch tag := fmt.Sprintf("%q", now); {
		case now == "":
			failed.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
		case r.Header.Get("If-None-Match") == tag:
			unchanged.Add(1)
			w.WriteHeader(http.StatusNotModified)
		default:
			sent.Add(1)
			w.Header().Set("ETag", tag)
			_, _ = io.WriteString(w, now)
		}
	}))
	t.Cleanup(web.Close)
	h, _, _ := provision(t, fmt.Sprintf(`{"dynamic": [{"source": "url", "url": "%s/list?key=secret", "refresh": "1s"}]}`, web.URL))
	until := func(is func() bool) {
		t.Helper()
		eventually(t, func() error {
			if !is() {
				return fmt.Errorf("%d sent, %d unchanged, %d failed", sent.Load(), unchanged.Load(), failed.Load())
			}
			return nil
		})
	}
	answers := func() string {
		conn, accepted := connect(t)
		handle(t, h, accepted)
		got := make([]byte, 1)
		_, _ = io.ReadFull(conn, got)
		finish(t, conn)
		return string(got)
	}
	if got := answers(); got != "a" {
		t.Errorf("got %q", got)
	}
	until(func() bool { return unchanged.Load() >= 1 })
	list.Store("")
	until(func() bool { return failed.Load() >= 2 })
	if got := answers(); got != "a" {
		t.Errorf("the server fails: %q", got)
	}
	list.Store(`["` + b + `", "unix//run/db.sock"]`)
	until(func() bool { return answers() == "b" })
	if n := sent.Load(); n != 2 {
		t.Errorf("sent %d times", n)
	}
	if name := h.dynamic.sources[0].ref.Value().name; name != "url "+web.URL+"/list" {
		t.Errorf("called %s", name)
	}
}
