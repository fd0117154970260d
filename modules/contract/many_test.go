package contract

import (
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// many is servers or ports of which there are n, 2n and 4n.
type many struct {
	name    string
	n       int
	servers func(n int) object
}

// manyServers have a port each on these networks.
func manyServers(name string, handle func(i int) []object, networks ...string) many {
	return many{name, 80, func(n int) object {
		all := object{}
		for i := range n {
			var listen []string
			for _, network := range networks {
				listen = append(listen, fmt.Sprintf("%s/127.88.%d.%d:0", network, i/250, i%250+1))
			}
			all[fmt.Sprint("server", i)] = object{"listen": listen, "routes": []object{{"handle": handle(i)}}}
		}
		return all
	}}
}

// manyPorts are a range of one server.
func manyPorts(name, network, to string) many {
	return many{name, 500, func(n int) object {
		const first = 20_000 // below those that the system gives to others
		return object{"range": object{
			"listen": []string{fmt.Sprintf("%s/127.88.100.1:%d-%d", network, first, first+n-1)},
			"routes": []object{{"handle": []object{forwardTo(fmt.Sprintf("%s%d-%d", to, first, first+n-1))}}},
		}}
	}}
}

func forwardTo(upstream string) object { return object{"handler": "forward", "to": []string{upstream}} }

func forwarding(to string) func(i int) []object {
	return func(i int) []object { return []object{forwardTo(fmt.Sprint(to, 1+i))} }
}

// guarded are three handlers that deny this prefix.
func guarded(deny, upstream string) []object {
	return []object{
		{"handler": "acl", "rules": []object{{"deny": []string{deny}}}},
		{"handler": "rate_limit", "connections": []object{{"rate": "100/s", "per": "ip"}}},
		forwardTo(upstream),
	}
}

// Loading a config, loading it again and ending it takes work in proportion to the number of its servers, or of the ports of a range: each further
// hundred takes what the hundred before them took. What takes time with the square of a number shows in what is allocated, because
// each step of the way allocates something.
func TestManyListenersTakeWorkInProportion(t *testing.T) {
	each := func(i int) []object {
		return guarded(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250), fmt.Sprint("127.0.0.1:", 1+i))
	}
	alike := func(int) []object { return guarded("10.0.0.0/8", "{l4.conn.remote_addr}") }
	for _, c := range []many{
		manyServers("tcp", forwarding("127.0.0.1:"), "gate+tcp"),
		manyServers("udp", forwarding("udp/127.0.0.1:"), "gate+udp"),
		manyServers("stock networks", forwarding("127.0.0.1:"), "tcp"),
		manyServers("guarded", each, "gate+tcp"),
		manyServers("alike", alike, "gate+tcp", "gate+udp"),
		manyPorts("range tcp", "gate+tcp", "127.0.0.1:"),
		manyPorts("range udp", "gate+udp", "udp/127.0.0.1:"),
	} {
		t.Run(c.name, func(t *testing.T) {
			bytes := [3]float64{math.MaxFloat64, math.MaxFloat64, math.MaxFloat64}
			ratio := math.MaxFloat64                        // 2 in proportion, 4 with the square
			for i := 0; i < 2 || i < 20 && ratio > 3; i++ { // what is made once and for all, and what configs before left to be done, adds to some
				for j := range bytes {
					bytes[j] = min(bytes[j], allocatedBy(t, c.servers(c.n<<j)))
				}
				ratio = (bytes[2] - bytes[1]) / (bytes[1] - bytes[0])
			}
			t.Logf("%.0f, %.0f and %.0f KiB", bytes[0]/1024, bytes[1]/1024, bytes[2]/1024)
			if ratio > 3 {
				t.Errorf("%d take %.0f KiB, %d take %.0f, %d take %.0f: a growth of %.1f, expected 2",
					c.n, bytes[0]/1024, 2*c.n, bytes[1]/1024, 4*c.n, bytes[2]/1024, ratio)
			}
		})
	}
}

// configOf returns a config with these servers, which logs nothing.
func configOf(t testing.TB, servers object) []byte {
	t.Helper()
	config, err := json.Marshal(object{
		"admin":   object{"disabled": true, "config": object{"persist": false}},
		"storage": object{"module": "file_system", "root": t.TempDir()},
		"logging": object{"logs": object{"default": object{"writer": object{"output": "discard"}}}},
		"apps":    object{"layer4": object{"servers": servers}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// allocatedBy returns how many bytes are allocated to load a config with these servers, to load it again, and to end it.
func allocatedBy(t *testing.T, servers object) float64 {
	t.Helper()
	config := configOf(t, servers)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 2 {
		if err := caddy.Load(config, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc - before.TotalAlloc)
}
