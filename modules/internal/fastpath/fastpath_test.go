package fastpath

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/goleak"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/throttle"
)

func TestMain(m *testing.M) {
	caddy.RegisterModule(new(step))
	caddy.RegisterModule(new(other))
	caddy.RegisterModule(new(matcher))
	caddy.RegisterNetwork(network, listen)
	goleak.VerifyTestMain(m)
}

// step is a handler that is a step unless it is told not to be.
type step struct {
	ID    int  `json:"id"`
	Never bool `json:"never,omitempty"`

	written string
	served  int
}

func (*step) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_step", New: func() caddy.Module { return new(step) }}
}

func (s *step) UnmarshalJSON(data []byte) error {
	type options step
	s.written = string(data)
	return caddyfile.UnmarshalJSON(data, (*options)(s))
}

func (s *step) Provision(ctx caddy.Context) error {
	if !s.Never {
		Offer(ctx, placement.Find(ctx, "test_step", s.written), s)
	}
	return nil
}

func (s *step) Handle(cx *layer4.Connection, next layer4.Handler) error { return next.Handle(cx) }

func (s *step) Serve(*session.Arrival) (next bool) {
	s.served++
	return s.ID != 0
}

// other is a handler of somebody else's, with an option like a step's.
type other struct {
	ID int `json:"id"`
}

func (*other) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_other", New: func() caddy.Module { return new(other) }}
}

func (*other) Handle(cx *layer4.Connection, next layer4.Handler) error { return next.Handle(cx) }

type matcher struct{}

func (*matcher) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.matchers.test_matcher", New: func() caddy.Module { return new(matcher) }}
}

func (*matcher) Match(*layer4.Connection) (bool, error) { return true, nil }

const network = "test+fastpath"

// found is what Steps said of each address that was listened on.
var found = struct {
	sync.Mutex
	steps map[string][]Step
}{steps: make(map[string][]Step)}

// listen is a [caddy.ListenerFunc] that opens a socket of no importance.
func listen(ctx context.Context, network, host, ports string, offset uint, _ net.ListenConfig) (any, error) {
	addr, err := caddy.ParseNetworkAddress(caddy.JoinNetworkAddress(network, host, ports))
	if err != nil {
		return nil, err
	}
	address := addr.JoinHostPort(offset)
	found.Lock()
	found.steps[address], _ = Steps(ctx, network, address)
	found.Unlock()
	return net.Listen("tcp", "127.0.0.1:0")
}

// load runs a layer4 app, and returns the IDs of the steps of each address that it listens on.
func load(t *testing.T, servers, level string) (map[string][]int, func()) {
	t.Helper()
	clear(found.steps)
	config := fmt.Sprintf(`{"admin":{"disabled":true,"config":{"persist":false}},
		"logging":{"logs":{"default":{"level":%q,"writer":{"output":"file","roll":false,"filename":%q}}}},
		"apps":{"layer4":{"servers":%s}}}`, level, filepath.Join(t.TempDir(), "log"), servers)
	if err := caddy.Load([]byte(config), true); err != nil {
		t.Fatal(err)
	}
	unload := sync.OnceFunc(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(unload)
	ids := make(map[string][]int)
	for address, steps := range found.steps {
		for _, s := range steps {
			ids[address] = append(ids[address], s.(*step).ID)
		}
	}
	return ids, unload
}

func TestSteps(t *testing.T) {
	for _, c := range []struct {
		name, routes string
		level        string
		want         []int
	}{
		{name: "one", routes: `{"handle":[{"handler":"test_step","id":1}]}`, want: []int{1}},
		{
			name:   "several, in order",
			routes: `{"handle":[{"handler":"test_step","id":3},{"id":1,"handler":"test_step"},{"handler":"test_step","id":2}]}`,
			want:   []int{3, 1, 2},
		},
		{name: "the same twice", routes: `{"handle":[{"handler":"test_step","id":1},{"handler":"test_step", "id":1}]}`, want: []int{1, 1}},
		{name: "no handler", routes: `{}`},
		{name: "no route"},
		{name: "a handler of somebody else's", routes: `{"handle":[{"handler":"test_step","id":1},{"handler":"test_other","id":1}]}`},
		{name: "only somebody else's, which looks like a step", routes: `{"handle":[{"handler":"test_other","id":1}]},{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_step","id":1}]}`},
		{name: "a step that is none in this config", routes: `{"handle":[{"handler":"test_step","id":1},{"handler":"test_step","id":2,"never":true}]}`},
		{name: "a matcher", routes: `{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_step","id":1}]}`},
		{
			name:   "another route to go on to",
			routes: `{"handle":[{"handler":"test_step","id":1}]},{"handle":[{"handler":"test_step","id":2}]}`,
		},
		{name: "a second route", routes: `{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_other"}]},{"handle":[{"handler":"test_step","id":1}]}`},
		{name: "layer4 logs each connection", level: "DEBUG", routes: `{"handle":[{"handler":"test_step","id":1}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.level == "" {
				c.level = "INFO"
			}
			got, _ := load(t, `{"s":{"listen":["`+network+`/localhost:1"],"routes":[`+c.routes+`]}}`, c.level)
			if !slices.Equal(got["localhost:1"], c.want) {
				t.Errorf("got %v, want %v", got["localhost:1"], c.want)
			}
		})
	}
}

func TestStepsAreOfTheirServer(t *testing.T) {
	got, _ := load(t, `{
		"a":{"listen":["`+network+`/localhost:1-2","`+network+`/:7"],"routes":[{"handle":[{"handler":"test_step","id":1}]}]},
		"b":{"listen":["`+network+`/localhost:3"],"routes":[{"handle":[{"handler":"test_step","id":2}]}]},
		"c":{"listen":["`+network+`/localhost:4"],"routes":[{"handle":[{"handler":"test_other"}]}]}
	}`, "INFO")
	want := map[string][]int{"localhost:1": {1}, "localhost:2": {1}, ":7": {1}, "localhost:3": {2}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPlansGoWithTheirConfig(t *testing.T) {
	plans := func() (n int) {
		plans.Range(func(any, any) bool { n++; return true })
		return n
	}
	config := `{"s":{"listen":["` + network + `/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":1}]}]}}`
	t.Cleanup(func() { _ = caddy.Stop() })
	for range 5 {
		load(t, config, "INFO")
	}
	_, unload := load(t, config, "INFO")
	rejected := strings.Replace(config, "localhost:1", "localhost:1-x", 1)
	raw, _ := json.Marshal(map[string]any{
		"admin": map[string]any{"disabled": true},
		"apps":  map[string]any{"layer4": map[string]any{"servers": json.RawMessage(rejected)}},
	})
	if err := caddy.Load(raw, true); err == nil {
		t.Error("want an error")
	}
	unload()
	for plans() > 0 { // they are deleted in goroutines of their own
		if t.Context().Err() != nil {
			t.Fatal("plans are left")
		}
	}
}

func TestServeEndsWithTheStepThatTakesTheConnection(t *testing.T) {
	for _, c := range []struct {
		ids    []int
		served []int
		closed bool
	}{
		{[]int{1, 0, 2}, []int{1, 1, 0}, false},
		{[]int{0}, []int{1}, false},
		{[]int{1, 2}, []int{1, 1}, true}, // as layer4 does where the last handler calls the next
	} {
		var steps []Step
		for _, id := range c.ids {
			steps = append(steps, &step{ID: id})
		}
		ours, theirs := net.Pipe()
		arrival := &session.Arrival{Conn: ours}
		over := false
		arrival.Throttle(new(throttle.Throttle)) // which need not have an End
		arrival.Throttle(&throttle.Throttle{End: func() { over = true }})
		Serve(steps, arrival, nil)
		if over != c.closed {
			t.Errorf("%v: throttle released: %t, want %t", c.ids, over, c.closed)
		}
		for i, s := range steps {
			if got := s.(*step).served; got != c.served[i] {
				t.Errorf("%v: step %d served %d times, want %d", c.ids, i, got, c.served[i])
			}
		}
		_ = theirs.Close()
		if _, err := ours.Read(make([]byte, 1)); (err.Error() == "io: read/write on closed pipe") != c.closed {
			t.Errorf("%v: %v", c.ids, err)
		}
	}
}

// waiter is a step that waits for the client where it is told to.
type waiter struct {
	step
	waits  bool
	resume func()
}

func (w *waiter) Await(a *session.Arrival, resume func(*session.Arrival)) bool {
	if w.waits {
		clone := a.Clone()
		w.resume = func() { resume(clone) }
	}
	return w.waits
}

// The steps behind one that waits are served when it resumes, with an arrival that is theirs.
func TestServeWaits(t *testing.T) {
	waits, passes, last := &waiter{waits: true, step: step{ID: 1}}, &waiter{step: step{ID: 1}}, &step{ID: 1}
	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	over := 0
	arrival := &session.Arrival{Conn: ours}
	arrival.Throttle(&throttle.Throttle{End: func() { over++ }})
	Serve([]Step{passes, waits, last}, arrival, nil)
	if passes.served != 1 || waits.served != 0 || last.served != 0 || over != 0 {
		t.Fatalf("served %d, %d and %d times before it resumes", passes.served, waits.served, last.served)
	}
	*arrival = session.Arrival{} // is used for the next one meanwhile
	waits.resume()
	if waits.served != 0 || last.served != 1 || over != 1 {
		t.Errorf("served %d and %d times, throttle released %d times", waits.served, last.served, over)
	}
}

func TestWithoutConfig(t *testing.T) {
	if steps, routed := Steps(t.Context(), network, "localhost:1"); steps != nil || routed {
		t.Errorf("got %v, %t", steps, routed)
	}
}

// The index of servers finds what going through all ports of all servers finds.
func TestServerIsFound(t *testing.T) {
	all := []string{
		"gate+tcp/:80", "gate+tcp/:90-92", "gate+tcp/localhost:79-81", "gate+tcp/[fe80::1%eth0]:80", "gate+tcp4/:79-80", "gate+tcp6/:80",
		"gate+tcp/127.0.0.1:0", "gate+udp/:80", "gate+fd/3", "gate+fd/4", "gate+fdgram/3",
	}
	app := &layer4.App{Servers: make(map[string]*layer4.Server)}
	want := make(map[string]*layer4.Server)
	addresses := []string{":78", ":82", ":x", "", "fd/", "localhost:82"}
	for _, listen := range all {
		server := &layer4.Server{Listen: []string{listen}}
		app.Servers[listen] = server
		addr, err := caddy.ParseNetworkAddress(listen)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := gate.Parse(addr.Network)
		for offset := range addr.PortRangeSize() {
			address := gate.Listener(n, addr, offset)
			want[n.Name+" "+address] = server
			addresses = append(addresses, address)
		}
	}
	var p plan
	p.index(app)
	for _, n := range gate.Networks {
		for _, address := range addresses {
			if got, _ := p.servers.First(n.Name, address); got != want[n.Name+" "+address] {
				t.Errorf("network %s, address %q: %v", n.Name, address, got)
			}
		}
	}
}
