package forward

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4subroute"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

func TestMatchPorts(t *testing.T) {
	t.Parallel()
	const none = "expected one port, because there is no listen address with a range of "
	for _, c := range []struct {
		to     string
		listen string
		want   string // the error, or the ranges
	}{
		{"a:1", "", ""},
		{"a:1", ":80", ""},
		{"a:1", ":80 :90", ""},
		{"a:1-1", ":80-80", ""},
		{"a:1 b:2", ":80", ""},
		{"unix//run/s", ":80-90", ""},
		{"unix//run/s", ":80", ""},
		{"{x}:1", ":80-90", ""},
		{"{x}", ":80 :80-90", ""},
		{"a:1", "unix//run/s", ""},
		{"a:1-11", ":80-90", "invalid IP 80-90"},
		{"a:1-11", "10.0.0.1:80-90 [::1]:70-80", "10.0.0.1 80-90, ::1 70-80"},
		{"a:1-11", "0.0.0.0:80-90 [::]:70-80 a.name:60-70", "invalid IP 80-90, invalid IP 70-80, invalid IP 60-70"},
		{"a:1-11", "[::ffff:10.0.0.1]:80-90", "10.0.0.1 80-90"},
		{"a:1-11 b:2-12", ":80-90", "invalid IP 80-90"},
		{"a:1-11 unix//run/s {x}:1", ":80-90", "invalid IP 80-90"},

		{"a:1-11", "", `"a:1-11": ` + none + "11"},
		{"a:1-11", ":80", `"a:1-11": expected one port, as the listen address ":80" has`},
		{"a:1-11", "unix//run/s", `"a:1-11": expected one port, as the listen address "unix//run/s" has`},
		{"a:1-11", ":80-91", `"a:1-11": expected a range of 12 ports, as the listen address ":80-91" has, or a placeholder`},
		{"a:1-11", ":80-89", `"a:1-11": expected a range of 10 ports, as the listen address ":80-89" has, or a placeholder`},
		{"a:1-11", ":80-90 :91", `"a:1-11": expected one port, as the listen address ":91" has`},
		{"a:1-11", ":80-90 :90-101", `"a:1-11": expected a range of 12 ports, as the listen address ":90-101" has, or a placeholder`},
		{"a:1", ":80-90", `"a:1": expected a range of 11 ports, as the listen address ":80-90" has, or a placeholder`},
		{"a:1-11 b:1", ":80-90", `"b:1": expected a range of 11 ports, as the listen address ":80-90" has, or a placeholder`},
		{"a:1-11 b:1-12", ":80-90", `"b:1-12": expected a range of 11 ports, as the listen address ":80-90" has, or a placeholder`},
	} {
		upstreams, err := (&Handler{To: strings.Fields(c.to)}).parseUpstreams("")
		if err != nil {
			t.Fatal(err)
		}
		var listen []caddy.NetworkAddress
		for _, address := range strings.Fields(c.listen) {
			addr, err := caddy.ParseNetworkAddress(address)
			if err != nil {
				t.Fatal(err)
			}
			listen = append(listen, addr)
		}
		ranges, err := matchPorts(upstreams, listen)
		var spelled []string
		for _, r := range ranges {
			spelled = append(spelled, fmt.Sprintf("%v %d-%d", r.ip, r.first, r.last))
		}
		got := strings.Join(spelled, ", ")
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s with %s:\ngot  %s\nwant %s", c.listen, c.to, got, c.want)
		}
	}
}

func TestOffset(t *testing.T) {
	t.Parallel()
	exact := []portRange{{netip.MustParseAddr("10.0.0.1"), 7000, 7010, false}, {netip.MustParseAddr("10.0.0.2"), 7005, 7015, false}}
	all := append(slices.Clone(exact), portRange{netip.Addr{}, 7002, 7012, false})
	allFirst := append([]portRange{{netip.Addr{}, 7002, 7012, false}}, exact...)
	for _, c := range []struct {
		local  string
		ranges []portRange
		want   int
	}{
		{"10.0.0.1:7007", nil, 0},
		{"10.0.0.1:7000", exact, 0},
		{"10.0.0.1:7007", exact, 7},
		{"10.0.0.1:7010", exact, 10},
		{"10.0.0.2:7007", exact, 2},
		{"10.0.0.2:7015", exact, 10},
		{"[::ffff:10.0.0.2]:7007", exact, 2},
		{"10.0.0.1:7007", all, 7},
		{"10.0.0.2:7007", all, 2},
		{"10.0.0.3:7007", all, 5},
		{"[2001:db8::1]:7012", all, 10},
		{"10.0.0.1:7007", allFirst, 7},
		{"10.0.0.3:7007", allFirst, 5},
		{"10.0.0.1:9", all, 0},
	} {
		local := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.local))
		// What a wrapper says, such as one that has read a PROXY header, is not where the connection came in.
		for _, cx := range []*layer4.Connection{
			wrapLocal(local), wrapLocal(local).Wrap(addressed{wrapLocal(local)}),
		} {
			if got := offset(listeners.Accepted(cx), c.ranges); got != c.want {
				t.Errorf("%s in %v: got %d, want %d", c.local, c.ranges, got, c.want)
			}
		}
	}
	for _, both := range [][]portRange{
		{{netip.Addr{}, 7000, 7010, false}, {netip.Addr{}, 7005, 7015, true}},
		{{netip.Addr{}, 7005, 7015, true}, {netip.Addr{}, 7000, 7010, false}},
	} {
		local := netip.MustParseAddrPort("10.0.0.1:7007")
		if got := offset(listeners.Accepted(wrapLocal(net.TCPAddrFromAddrPort(local))), both); got != 7 {
			t.Errorf("TCP in %v: got %d, want 7", both, got)
		}
		if got := offset(listeners.Accepted(wrapLocal(net.UDPAddrFromAddrPort(local))), both); got != 2 {
			t.Errorf("UDP in %v: got %d, want 2", both, got)
		}
	}
	unix := &net.UnixAddr{Net: "unix", Name: "/run/s"}
	if got := offset(listeners.Accepted(wrapLocal(unix)), all); got != 0 {
		t.Errorf("unix: got %d", got)
	}
}

// at is a connection that came in at an address.
type at struct {
	addressed
	local net.Addr
}

func (a at) LocalAddr() net.Addr { return a.local }

func wrapLocal(local net.Addr) *layer4.Connection {
	return layer4.WrapConnection(at{local: local}, nil, zap.NewNop())
}

// ports serves a range of ports on a host of its own; each says which it is.
func ports(t *testing.T, name string, first, last int) string {
	t.Helper()
	host := newHost()
	for port := first; port <= last; port++ {
		named(t, fmt.Sprintf("%s:%d", host, port), fmt.Sprintf("%s %d", name, port-first))
	}
	return fmt.Sprintf("%s:%d-%d", host, first, last)
}

// mustReach requires that a port is forwarded to what has this name.
func mustReach(t *testing.T, host string, port int, name string) {
	t.Helper()
	conn := dial(t, fmt.Sprintf("%s:%d", host, port))
	read(t, conn, name)
	finish(t, conn)
}

// A handler finds the listen addresses of its server wherever it is, and those of no other.
func TestPortRanges(t *testing.T) {
	a, b := ports(t, "a", 8000, 8002), ports(t, "b", 9000, 9002)
	sub := func(h object) object {
		return object{"handler": "subroute", "routes": []object{{"handle": []object{h}}}}
	}
	for name, handler := range map[string]object{
		"in a route":    to([]string{a}),
		"in a subroute": sub(to([]string{a})),
		"deeper":        sub(sub(sub(to([]string{a})))),
		"beside others": {"handler": "subroute", "routes": []object{
			{"handle": []object{sub(object{"handler": "subroute"})}},
			{"handle": []object{to([]string{a})}},
			{"handle": []object{to([]string{b})}},
		}},
	} {
		for _, network := range networks {
			t.Run(name+"/"+network, func(t *testing.T) {
				host, second := newHost(), newHost()
				mustLoad(t, object{
					"a":     server(handler, network+"/"+host+":7000-7002", network+"/"+second+":7001-7003"),
					"other": server(to([]string{"127.0.0.1:9"}), network+"/"+newHost()+":7000"),
				})
				for i := range 3 {
					mustReach(t, host, 7000+i, fmt.Sprint("a ", i))
					mustReach(t, second, 7001+i, fmt.Sprint("a ", i))
				}
			})
		}
	}
}

// Two servers with the very same handler. layer4 provisions them in any order, and what the second handler sees
// of the first depends on it; what they do must not.
func TestPortRangesOfServersThatAreAlike(t *testing.T) {
	a, host, second := ports(t, "a", 8000, 8002), newHost(), newHost()
	servers := object{
		"a": server(to([]string{a}, object{"retries": 1}), "tcp/"+host+":7000-7002"),
		"b": server(json.RawMessage(fmt.Sprintf(`{ "retries": 1, "to": [%q], "handler": "forward" }`, a)), "tcp/"+second+":7002-7004"),
	}
	mustLoad(t, servers)
	for range 10 {
		for i := range 3 {
			mustReach(t, host, 7000+i, fmt.Sprint("a ", i))
			mustReach(t, second, 7002+i, fmt.Sprint("a ", i))
		}
		if err := load(object{"layer4": object{"servers": servers}}); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 { // now one of them has no range
		err := load(object{"layer4": object{"servers": object{
			"a": server(to([]string{a}), "tcp/"+host+":7000-7002"),
			"b": server(to([]string{a}), "tcp/"+second+":7000"),
		}}})
		if err == nil || !strings.Contains(err.Error(), "expected one port, as the listen address") {
			t.Fatalf("got %v", err)
		}
	}
}

func TestPortRangesAreRefused(t *testing.T) {
	dir := t.TempDir()
	host := newHost()
	for name, c := range map[string]struct {
		to, listen []string
		want       string
	}{
		"a range to one port": {
			[]string{"127.0.0.1:9"},
			[]string{host + ":7000-7002"},
			fmt.Sprintf(`to: "127.0.0.1:9": expected a range of 3 ports, as the listen address "%s:7000-7002" has, or a placeholder`, host),
		},
		"one port to a range": {
			[]string{"127.0.0.1:1-3"},
			[]string{host + ":7000"},
			fmt.Sprintf(`to: "127.0.0.1:1-3": expected one port, as the listen address "%s:7000" has`, host),
		},
		"the size of the second address": {
			[]string{"127.0.0.1:1-3"},
			[]string{host + ":7000-7002", "tcp/" + host + ":8000-8003"},
			fmt.Sprintf(`to: "127.0.0.1:1-3": expected a range of 4 ports, as the listen address "%s:8000-8003" has, or a placeholder`, host),
		},
		"a unix socket": {
			[]string{"127.0.0.1:1-3"},
			[]string{"unix/" + filepath.Join(dir, "s")},
			fmt.Sprintf(`to: "127.0.0.1:1-3": expected one port, as the listen address "unix/%s" has`, filepath.Join(dir, "s")),
		},
		"a listen address with a placeholder": {
			[]string{"127.0.0.1:1-3"},
			[]string{"{env.PORTGATE_TEST_HOST}:7000-7003"},
			`to: "127.0.0.1:1-3": expected a range of 4 ports, as the listen address "127.0.0.1:7000-7003" has, or a placeholder`,
		},
		"a listen address that does not parse": {
			[]string{"127.0.0.1:1-3"}, []string{host + ":x"}, "parsing listener address '" + host + ":x'",
		},
	} {
		err := load(object{"layer4": object{"servers": object{"a": server(to(c.to), c.listen...)}}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, c.want)
		}
	}
}
