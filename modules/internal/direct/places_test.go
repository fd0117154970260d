package direct

import (
	"fmt"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/mholt/caddy-l4/modules/l4subroute"
)

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
			servers: `{"a":{"listen":["test+direct/localhost:1-2","tcp/127.0.0.1:0"],"routes":[{"handle":[{"handler":"test_step","id":7}]}]}}`,
			want:    []string{"tcp :0 0/0 true", "test+direct :1 0/0 true", "test+direct :2 0/0 true"},
			listens: []string{"127.0.0.1:0", "test+direct/localhost:1-2"},
		},
		{
			name:    "not the first handler",
			servers: `{"a":{"listen":["test+direct/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":1},{"id":7,"handler":"test_step"}]}]}}`,
			want:    []string{"test+direct :1 0/1 true"},
		},
		{
			name:    "behind a matcher",
			servers: `{"a":{"listen":["test+direct/localhost:1"],"routes":[{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_step","id":7}]}]}}`,
			want:    []string{"test+direct :1 0/0 false"},
		},
		{
			name:    "in the second route",
			servers: `{"a":{"listen":["test+direct/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":1}]},{"handle":[{"handler":"test_step","id":7}]}]}}`,
			want:    []string{"test+direct :1 1/0 false"},
		},
		{
			name:    "in a subroute",
			servers: `{"a":{"listen":["test+direct/localhost:1"],"routes":[{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"test_step","id":7}]}]}]}]}}`,
			want:    []string{"test+direct :1 0/0/routes/0/handle/0 false"},
		},
		{
			name: "in two servers",
			servers: `{"a":{"listen":["test+direct/localhost:1"],"routes":[{"handle":[{"handler":"test_step","id":7}]}]},
				"b":{"listen":["test+direct/localhost:2"],"routes":[{"handle":[{"handler":"test_other","id":7},{"handler":"test_step","id":7}]}]}}`,
			want: []string{"test+direct :1 0/0 true", "test+direct :2 0/1 true"},
		},
		{
			name: "in many routes",
			servers: `{"a":{"listen":["test+direct/localhost:1"],"routes":[
					{"match":[{"test_matcher":{}}],"handle":[{"handler":"test_step","id":7}]},
					{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"test_step","id":7}]}]},{"id":7,"handler":"test_step"}]}]},
				"b":{"listen":["test+direct/localhost:2"],"routes":[{"handle":[{"handler":"test_step","id":7},{"handler":"test_step","id":7}]}]}}`,
			want: []string{
				"test+direct :1 0/0 false", "test+direct :1 1/0/routes/0/handle/0 false", "test+direct :1 1/1 false",
				"test+direct :2 0/0 true", "test+direct :2 0/1 true",
			},
			listens: []string{"test+direct/localhost:1", "test+direct/localhost:2"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			places.Lock()
			places.found, places.listens = nil, nil
			places.Unlock()
			_, unload := load(t, c.servers, "INFO")
			unload()
			places.Lock()
			defer places.Unlock()
			if len(places.found) == 0 {
				t.Error("nobody has asked")
			}
			for i, got := range places.found {
				if !slices.Equal(got, c.want) {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if got := places.listens[i]; c.listens != nil && !slices.Equal(got, c.listens) {
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
		if got := fmt.Sprint(placesOf(addr, "0/0", true)); got != "["+want+"]" {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
}
