package placement

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4subroute"
	"go.uber.org/goleak"

	"github.com/portgate/caddy-portgate/caddyfile"
)

func TestMain(m *testing.M) {
	caddy.RegisterModule(new(step))
	caddy.RegisterModule(new(other))
	caddy.RegisterModule(new(matcher))
	home, err := os.MkdirTemp("", "placement")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_DATA_HOME", home) // where Caddy keeps certificates
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(home)
		os.Exit(code)
	}))
}

// step is a handler that asks for its places where its id is 7.
type step struct {
	ID int `json:"id"`

	written string
}

func (*step) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_step", New: func() caddy.Module { return new(step) }}
}

func (s *step) UnmarshalJSON(data []byte) error {
	type options step
	s.written = string(data)
	return caddyfile.UnmarshalJSON(data, (*options)(s))
}

// asked is what each step with the id 7 was told.
var asked struct{ found, listens [][]string }

func (s *step) Provision(ctx caddy.Context) error {
	if s.ID != 7 {
		return nil
	}
	at := Find(ctx, "test_step", s.written)
	if laidOut := Find(ctx, "test_step", "{\n\t\"\\u0069d\": 7\n}"); laidOut != at {
		return fmt.Errorf("in another layout it is %v, not %v", laidOut, at)
	}
	if none := Find(ctx, "test_step", `{"id":8}`); len(none.Places()) > 0 || none.Canonical() != `{"id":8}` {
		return fmt.Errorf("what stands nowhere is %v", none)
	}
	var found, listens []string
	for _, place := range at.Places() {
		found = append(found, fmt.Sprintf("%s %s %s %t", place.Network, place.Listener, place.Path, place.Always))
	}
	for _, addr := range at.Listens() {
		listens = append(listens, addr.String())
	}
	slices.Sort(found)
	slices.Sort(listens)
	asked.found, asked.listens = append(asked.found, found), append(asked.listens, listens)
	return nil
}

func (s *step) Handle(cx *layer4.Connection, next layer4.Handler) error { return next.Handle(cx) }

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

// validate provisions a layer4 app and cleans it up.
func validate(t *testing.T, servers string) {
	t.Helper()
	var cfg caddy.Config
	config := fmt.Sprintf(`{"admin":{"disabled":true,"config":{"persist":false}},"apps":{"layer4":{"servers":%s}}}`, servers)
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&cfg); err != nil {
		t.Fatal(err)
	}
}

// Each of several handlers that are written alike finds all places where they stand, whatever the order in which servers and
// routes are provisioned.
func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		name, servers string
		want          []string // of the step with id 7
		listens       []string // the same
	}{
		{
			name:    "every address of the server",
			servers: `{"a":{"listen":["tcp/localhost:1-2","tcp/127.0.0.1:0"],"routes":[{"handle":[{"handler":"test_step","id":7}]}]}}`,
			want:    []string{"tcp :0 0/0 true", "tcp :1 0/0 true", "tcp :2 0/0 true"},
			listens: []string{"127.0.0.1:0", "localhost:1-2"},
		},
		{
			name:    "not the first handler",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":1},{"id":7,"handler":"test_step"}]}]}}`,
			want:    []string{"tcp :1 0/1 true"},
		},
		{
			name:    "behind a matcher",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_step","id":7}]}]}}`,
			want:    []string{"tcp :1 0/0 false"},
		},
		{
			name:    "in the second route",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":1}]},{"handle":[{"handler":"test_step","id":7}]}]}}`,
			want:    []string{"tcp :1 1/0 false"},
		},
		{
			name:    "in a subroute",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"test_step","id":7}]}]}]}]}}`,
			want:    []string{"tcp :1 0/0/routes/0/handle/0 false"},
		},
		{
			name:    "in a subroute in capitals",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[{"handle":[{"handler":"subroute","Routes":[{"HANDLE":[{"handler":"test_step","id":7}]}]}]}]}}`,
			want:    []string{"tcp :1 0/0/routes/0/handle/0 false"},
		},
		{
			name: "in two servers",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":7}]}]},
				"b":{"listen":["tcp/localhost:2"],"routes":[{"handle":[{"handler":"test_other","id":7},{"handler":"test_step","id":7}]}]}}`,
			want: []string{"tcp :1 0/0 true", "tcp :2 0/1 true"},
		},
		{
			name: "in many routes",
			servers: `{"a":{"listen":["tcp/localhost:1"],"routes":[
					{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_step","id":7}]},
					{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"test_step","id":7}]}]},{"id":7,"handler":"test_step"}]}]},
				"b":{"listen":["tcp/localhost:2"],"routes":[{"handle":[{"handler":"test_step","id":7},{"handler":"test_step","id":7}]}]}}`,
			want: []string{
				"tcp :1 0/0 false", "tcp :1 1/0/routes/0/handle/0 false", "tcp :1 1/1 false",
				"tcp :2 0/0 true", "tcp :2 0/1 true",
			},
			listens: []string{"localhost:1", "localhost:2"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked.found, asked.listens = nil, nil
			validate(t, c.servers)
			if len(asked.found) == 0 {
				t.Error("nobody has asked")
			}
			for i, got := range asked.found {
				if !slices.Equal(got, c.want) {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if got := asked.listens[i]; c.listens != nil && !slices.Equal(got, c.listens) {
					t.Errorf("listens on %q, want %q", got, c.listens)
				}
			}
		})
	}
}

func (p Place) String() string {
	return fmt.Sprintf("%s %s %s %t", p.Network, p.Listener, p.Path, p.Always)
}

func TestPlacesOfGateNetworks(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"gate+tcp/127.0.0.1:80": "tcp 127.0.0.1:80 0/0 true",
		"gate+udp/:53":          "udp :53 0/0 true",
		"tcp/127.0.0.1:80":      "tcp :80 0/0 true",
		"udp/[::1]:53":          "udp :53 0/0 true",
		"unix//run/a.sock":      "unix /run/a.sock 0/0 true",
	} {
		addr, err := caddy.ParseNetworkAddress(listen)
		if err != nil {
			t.Fatal(err)
		}
		var f Finding
		f.add(0, []listening{{addr: addr}}, "0/0", true)
		if got := fmt.Sprint(f.Places()); got != "["+want+"]" {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
}
