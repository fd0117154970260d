package logqueue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) {
	caddy.RegisterModule(new(testWriter))
	caddy.RegisterModule(new(testApp))
	if err := caddy.Load(config("default"), true); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

// testWriter is a destination of the name Dest, which tests can make stall.
type testWriter struct {
	Dest string `json:"dest"`
}

func (*testWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.test", New: func() caddy.Module { return new(testWriter) }}
}

func (w *testWriter) String() string                      { return w.Dest }
func (w *testWriter) WriterKey() string                   { return w.Dest }
func (w *testWriter) OpenWriter() (io.WriteCloser, error) { return destOf(w.Dest), nil }

// dest is where entries go. While it is locked its writes block.
type dest struct {
	stall sync.Mutex

	mu      sync.Mutex
	written bytes.Buffer
}

var dests sync.Map // by name

func destOf(name string) *dest {
	d, _ := dests.LoadOrStore(name, new(dest))
	return d.(*dest)
}

func (d *dest) Write(b []byte) (int, error) {
	d.stall.Lock()
	defer d.stall.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written.Write(b)
}

func (d *dest) Close() error { return nil }

func (d *dest) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written.Reset()
}

func (d *dest) lines() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Split(strings.TrimSuffix(d.written.String(), "\n"), "\n")
}

func (d *dest) count(part string) (n int) {
	for _, line := range d.lines() {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

// testApp has the logger of a config.
type testApp struct{ ctx caddy.Context }

func (*testApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "logqueue_test", New: func() caddy.Module { return new(testApp) }}
}

var lastApp *testApp

func (a *testApp) Provision(ctx caddy.Context) error { a.ctx, lastApp = ctx, a; return nil }
func (a *testApp) Start() error                      { return nil }
func (a *testApp) Stop() error                       { return nil }

// config has the default log at "default" and one log for each destination. The encoder's lines differ in nothing but what a test logs.
func config(dests ...string) []byte {
	var logs []string
	for i, d := range dests {
		name := "default"
		if i > 0 {
			name = fmt.Sprintf("log%d", i)
		}
		logs = append(logs, fmt.Sprintf(`%q: {"writer": {"output": "test", "dest": %q}, "encoder": {"format": "json"}}`, name, d))
	}
	return fmt.Appendf(nil, `{"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {%s}}, "apps": {"logqueue_test": {}}}`, strings.Join(logs, ", "))
}

// load runs a config and returns the context of its app. One config runs at a time, so tests that use it are not parallel.
func load(t *testing.T, dests ...string) caddy.Context {
	t.Helper()
	if err := caddy.Load(config(dests...), true); err != nil {
		t.Fatal(err)
	}
	return lastApp.ctx
}

func flush(t *testing.T) {
	t.Helper()
	if left := Flush(10 * time.Second); left > 0 {
		t.Fatalf("%d entries are left", left)
	}
}

// stalled makes a destination stall until the test, or the function that is returned, lets it go on.
func stalled(t *testing.T, name string) (goOn func()) {
	dests.Range(func(_, d any) bool { d.(*dest).reset(); return true }) // of an earlier run
	d := destOf(name)
	d.stall.Lock()
	goOn = sync.OnceFunc(d.stall.Unlock)
	t.Cleanup(func() { goOn(); flush(t) })
	return goOn
}

func drains() (n int) {
	stacks := make([]byte, 1<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "logqueue.(*queue).drain(")
}

// Who logs does not wait, another destination gets its entries, and nothing of what has found room is lost or changes its order.
func TestADestinationThatStallsHoldsUpNobody(t *testing.T) {
	goOn := stalled(t, "stalls")
	ctx := load(t, "default", "stalls", "works")
	log := WrapAccess(ctx.Logger().With(zap.Int("with", 1)).Named("access"), 100)
	const entries = 250
	for i := range entries {
		log.Info("entry", zap.Int("n", i))
		waitFor(t, "the other destinations", func() bool {
			return destOf("works").count(`"msg":"entry"`) > i && destOf("default").count(`"msg":"entry"`) > i
		})
	}
	goOn()
	waitFor(t, "word of it", func() bool {
		d := destOf("default")
		return d.count("the queue is full") == 1 && d.count("takes its entries again") == 1 && d.count(`"dropped":150`) == 1
	})
	flush(t)
	for i, line := range destOf("stalls").lines()[:100] {
		if want := fmt.Sprintf(`"logger":"logqueue_test.access","msg":"entry","with":1,"n":%d}`, i); !strings.HasSuffix(line, want) {
			t.Fatalf("line %d is %s, want %s at its end", i, line, want)
		}
	}
	if n := destOf("stalls").count(`"msg":"entry"`); n != 100 {
		t.Errorf("%d entries, want 100", n)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
	}
}

// However many configs come and go, one goroutine waits for a destination that takes nothing.
func TestOneGoroutineForADestination(t *testing.T) {
	goOn := stalled(t, "stuck")
	const reloads = 50
	for range reloads {
		ctx := load(t, "default", "stuck")
		Logger(ctx).Info("reloaded")
		WrapAccess(ctx.Logger(), 10).Info("session")
	}
	waitFor(t, "the default log", func() bool { return destOf("default").count("reloaded") >= reloads })
	if n := drains(); n > 2 { // that of the default log may be about to end
		t.Errorf("%d goroutines", n)
	}
	load(t, "default")
	goOn()
	flush(t)
	if n := destOf("stuck").count("reloaded"); n != reloads {
		t.Errorf("%d entries", n)
	}
	waitFor(t, "no goroutine is left", func() bool { return drains() == 0 })
}

func TestDestinations(t *testing.T) {
	destinations := func(dests ...string) (all []destination) {
		for _, part := range parts(load(t, dests...).Logger().Core()) {
			all = append(all, destinationOf(part))
		}
		return all
	}
	a, b := destinations("a")[0], destinations("b")[0]
	if a == b || a.address == 0 {
		t.Errorf("a is %v, b is %v", a, b)
	}
	if again := destinations("a")[0]; again != a {
		t.Errorf("the next config's is %v, want %v", again, a)
	}
	if both := destinations("a", "b"); len(both) != 2 || both[0].address+both[1].address != a.address+b.address || both[0] == both[1] {
		t.Errorf("a logger of both has %v, want %v and %v", both, a, b)
	}
	for _, writer := range []string{`{"output": "stdout"}`, `{"output": "stderr"}`, fmt.Sprintf(`{"output": "file", "filename": %q, "roll": false}`, t.TempDir()+"/log")} {
		var found []destination
		for _, more := range []string{"", `, "sampling": {}`, `, "exclude": ["http"]`} {
			err := caddy.Load(fmt.Appendf(nil, `{"admin": {"disabled": true, "config": {"persist": false}},
				"logging": {"logs": {"default": {"writer": %s%s}}}, "apps": {"logqueue_test": {}}}`, writer, more), true)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, destinationOf(lastApp.ctx.Logger().Core()), destinationOf(Logger(lastApp.ctx).Core().(*core).Core))
		}
		for _, d := range found[1:] {
			if d != found[0] || d.address == 0 {
				t.Errorf("%s: %v", writer, found)
			}
		}
	}
	load(t, "default")
}

// What a logger leaves out or samples never gets into a queue.
func TestWhatALoggerAddsAndLeavesOut(t *testing.T) {
	t.Parallel()
	observed, logs := observer.New(zap.InfoLevel)
	log := Wrap(Wrap(zap.New(zapcore.NewSamplerWithOptions(observed, time.Hour, 2, 0), zap.AddCaller())))
	if log.Core().Enabled(zap.DebugLevel) || log.Check(zap.DebugLevel, "") != nil {
		t.Error("the level is not that of the core within")
	}
	fields := []zap.Field{zap.Int("n", 1)}
	for range 5 {
		log.Info("sampled", fields...)
	}
	log.Named("name").With(zap.Int("with", 2)).Error("error", fields...)
	fields[0] = zap.Int("n", 3)
	flush(t)
	all := logs.All()
	if len(all) != 3 {
		t.Fatalf("%v", all)
	}
	last := all[2]
	if last.LoggerName != "name" || last.ContextMap()["with"] != int64(2) || last.ContextMap()["n"] != int64(1) || !strings.HasSuffix(last.Caller.File, "logqueue_test.go") {
		t.Errorf("%+v", last)
	}
}

// Warnings have room where the access log fills its own.
func TestKindsHaveRoomOfTheirOwn(t *testing.T) {
	goOn := stalled(t, "kinds")
	ctx := load(t, "default", "kinds")
	sessions, warnings := WrapAccess(ctx.Logger(), 5), Logger(ctx)
	for range 50 {
		sessions.Info("session")
	}
	warnings.Warn("found room")
	goOn()
	flush(t)
	if n := destOf("kinds").count("found room"); n != 1 {
		t.Errorf("%d", n)
	}
}

func TestFlushGivesUp(t *testing.T) {
	goOn := stalled(t, "never")
	ctx := load(t, "default", "never")
	for range 3 {
		WrapAccess(ctx.Logger(), 10).Info("session")
	}
	waitFor(t, "the default log", func() bool { return destOf("default").count(`"session"`) >= 3 })
	before := testutil.ToFloat64(dropped(access))
	start := time.Now()
	if left := Flush(50 * time.Millisecond); left < 3 {
		t.Errorf("%d are left", left)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	if n := testutil.ToFloat64(dropped(access)) - before; n < 3 {
		t.Errorf("%v counted as dropped", n)
	}
	goOn()
	flush(t)
	if left := Flush(0); left != 0 {
		t.Errorf("%d are left of nothing", left)
	}
}

// failing is a destination that writes every second entry.
type failing struct{ n int }

func (f *failing) Write(b []byte) (int, error) {
	if f.n++; f.n%2 == 0 {
		return 0, errors.New("no space left on device")
	}
	return len(b), nil
}

func (*failing) Close() error { return nil }

// An entry that can't be written is counted, and it is said once that this is so.
func TestEntriesThatCannotBeWrittenAreCounted(t *testing.T) {
	load(t, "default")
	failures.mu.Lock()
	failures.said = time.Time{} // of an earlier run
	failures.mu.Unlock()
	before, said := testutil.ToFloat64(dropped(access)), destOf("default").count("its entries are lost")
	log := WrapAccess(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(new(failing)), zap.InfoLevel)), 1000)
	for range 100 {
		log.Info("session")
	}
	flush(t)
	if n := testutil.ToFloat64(dropped(access)) - before; n != 50 {
		t.Errorf("%v are counted, want 50", n)
	}
	if n := destOf("default").count("its entries are lost") - said; n != 1 || destOf("default").count(`"error":"no space left on device"`) == 0 {
		t.Errorf("said %d times, want once with the reason", n)
	}
	lines, before := Writer(new(failing)), testutil.ToFloat64(dropped(other))
	for range 10 {
		fmt.Fprintln(lines, "line")
	}
	flush(t) // a line is counted when Write has returned
	if n := testutil.ToFloat64(dropped(other)) - before; n != 5 {
		t.Errorf("%v lines are counted, want 5", n)
	}
}

func TestMetricsAreThereBeforeAnythingIsDropped(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	if err := Register(registry); err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(registry); n != 2 || err != nil {
		t.Errorf("%d metrics, %v", n, err)
	}
}

func BenchmarkEntry(b *testing.B) {
	log := WrapAccess(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.InfoLevel)), 1<<30)
	b.ReportAllocs()
	for b.Loop() {
		log.Info("session", zap.Int("a", 1), zap.String("b", "2"))
	}
	Flush(time.Minute)
}
