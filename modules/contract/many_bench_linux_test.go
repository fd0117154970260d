package contract

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// BenchmarkReload loads a config again that nothing has changed in, with thousands of servers or ports, beside the same with the stock networks
// and caddy-l4's proxy. docs/performance.md has its figures.
func BenchmarkReload(b *testing.B) {
	const first = 20_000
	proxy := func(upstream string) object {
		return object{"handler": "proxy", "upstreams": []object{{"dial": []string{upstream}}}}
	}
	servers := func(n int, listen string, handle func(i int) []object) object {
		all := object{}
		for i := range n {
			all[fmt.Sprint("server", i)] = object{
				"listen": []string{fmt.Sprintf("%s/127.88.101.1:%d", listen, first+i)}, "routes": []object{{"handle": handle(i)}},
			}
		}
		return all
	}
	ports := func(n int, listen string, handler object) object {
		return object{"range": object{
			"listen": []string{fmt.Sprintf("%s/127.88.101.1:%d-%d", listen, first, first+n-1)}, "routes": []object{{"handle": []object{handler}}},
		}}
	}
	to := func(i int) string { return fmt.Sprint("127.0.0.1:", 1+i) }
	for _, c := range []struct {
		name    string
		servers object
	}{
		{"5000servers/stock", servers(5000, "tcp", func(i int) []object { return []object{proxy(to(i))} })},
		{"5000servers/gate", servers(5000, "gate+tcp", func(i int) []object { return []object{forwardTo(to(i))} })},
		{"5000servers/alike", servers(5000, "gate+tcp", func(int) []object { return []object{forwardTo(to(0))} })},
		{"5000servers/guarded", servers(5000, "gate+tcp", func(i int) []object {
			return guarded(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250), to(i))
		})},
		{"9000ports/stock", ports(9000, "tcp", proxy(to(0)))},
		{"9000ports/gate", ports(9000, "gate+tcp", forwardTo(fmt.Sprintf("127.0.0.1:%d-%d", first, first+8999)))},
		{"10000ports/gate", ports(10_000, "gate+tcp", forwardTo(fmt.Sprintf("127.0.0.1:%d-%d", first, first+9999)))},
		{"10000ports/gateUDP", ports(10_000, "gate+udp", forwardTo(fmt.Sprintf("udp/127.0.0.1:%d-%d", first, first+9999)))},
	} {
		b.Run(c.name, func(b *testing.B) {
			config := configOf(b, c.servers)
			if err := caddy.Load(config, true); err != nil {
				b.Fatal(err)
			}
			before := processorTime(b)
			for b.Loop() {
				if err := caddy.Load(config, true); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((processorTime(b)-before).Seconds()/float64(b.N), "cpu-s/op")
			if err := caddy.Stop(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// processorTime returns how much of the processors the process has had, which a busy machine does not change much.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
