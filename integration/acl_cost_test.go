package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Refusing a connection costs about what it costs HAProxy, or less. The medians of several rounds, taken in turn, leave out what else the
// machine does; where that does not suffice, there are more rounds.
func TestACLCostOfADeniedConnection(t *testing.T) {
	const (
		minRounds, maxRounds = 5, 15
		connections          = 20_000
		atMost               = 1.25 // times HAProxy's
	)
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, acl("deny 127.0.0.0/8"), gate.Forward(gate.ReserveAddr(t))))
	config = config.With("logging", gate.JSON{"logs": gate.JSON{"default": gate.JSON{"exclude": []string{"layer4.log.access"}}}})
	p := gate.Start(t, config, gate.WithoutRace())
	haproxy, nginx := refusingHAProxy(t), refusingNginx(t)
	proxies := []struct {
		name, addr string
		pid        int
	}{{"gate", addr, p.PID()}, {"HAProxy", haproxy.addr, haproxy.pid}, {"nginx", nginx.addr, nginx.pid}}

	cost := make(map[string][]float64) // CPU microseconds of each connection
	median := func(name string) float64 { return slices.Sorted(slices.Values(cost[name]))[len(cost[name])/2] }
	tooMuch := func() bool { return median("gate") > atMost*median("HAProxy") }
	for round := 0; round <= minRounds || round <= maxRounds && tooMuch(); round++ {
		for _, proxy := range proxies {
			before := cpuTime(t, proxy.pid)
			if said, _ := startOwnProcess(t, "denied", proxy.addr, strconv.Itoa(connections)); said != "done" {
				t.Fatalf("the client of %s said %q", proxy.name, said)
			}
			if spent := cpuTime(t, proxy.pid) - before; round > 0 { // the first one is to warm up
				cost[proxy.name] = append(cost[proxy.name], float64(spent.Nanoseconds())/1000/connections)
			}
		}
	}
	for _, proxy := range proxies {
		all := cost[proxy.name]
		t.Logf("CPU of a denied connection in %s: %.1f µs, %.1f to %.1f (median, least, most) of %d rounds", proxy.name, median(proxy.name), slices.Min(all), slices.Max(all), len(all))
	}
	if tooMuch() {
		t.Errorf("a denied connection costs %.1f µs, want at most %v times HAProxy's %.1f", median("gate"), atMost, median("HAProxy"))
	}
}

// refusing is a proxy that lets nobody in.
type refusing struct {
	addr string
	pid  int
}

func refusingHAProxy(t testing.TB) refusing {
	t.Helper()
	addr := gate.ReserveAddr(t)
	path := writeFile(t, "haproxy.cfg", fmt.Sprintf(`defaults
  mode tcp
  timeout connect 3s
  timeout client 10m
  timeout server 10m
frontend in
  bind %s
  tcp-request connection reject if { src 127.0.0.0/8 }
  default_backend out
backend out
  server backend 127.0.0.1:9
`, addr))
	cmd := exec.Command(program(t, "haproxy"), "-db", "-f", path)
	server(t, addr, cmd)
	return refusing{addr, cmd.Process.Pid}
}

// loadStreamModule is the line with which nginx loads its stream module, where that is not compiled in.
func loadStreamModule() string {
	if found, _ := filepath.Glob("/usr/lib/nginx/modules/ngx_stream_module.so"); len(found) > 0 {
		return "load_module " + found[0] + ";"
	}
	return ""
}

func refusingNginx(t testing.TB) refusing {
	t.Helper()
	addr := gate.ReserveAddr(t)
	path := writeFile(t, "nginx.conf", fmt.Sprintf(`%s
master_process off;
daemon off;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
stream {
  server {
    listen %s;
    deny 127.0.0.0/8;
    proxy_pass 127.0.0.1:9;
  }
}
`, loadStreamModule(), addr))
	cmd := exec.Command(program(t, "nginx"), "-p", filepath.Dir(path), "-c", path, "-e", "stderr")
	server(t, addr, cmd)
	return refusing{addr, cmd.Process.Pid}
}

// cpuTime returns what a process has used of the processors so far.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	const schedClock = 2 // a process's clock, as clock_getcpuclockid(3) makes its id
	var spent unix.Timespec
	must(t, unix.ClockGettime(int32(^pid<<3|schedClock), &spent))
	return time.Duration(spent.Nano())
}

// beDenied is a client that connects again and again, and is closed each time without a byte.
func beDenied(args []string) {
	const clients = 16
	n, err := strconv.Atoi(args[1])
	check("number", err)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			to, buf := sockaddr(args[0]), make([]byte, 1)
			for range n / clients {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				check("socket", err)
				if err := unix.Connect(fd, to); err != nil && err != unix.ECONNRESET {
					check("connect", err)
				}
				if got, errno := blockingRead(fd, buf); got > 0 {
					check("read", fmt.Errorf("%d bytes, %w", got, errno))
				}
				resetFD(fd) // which spares both the TIME_WAIT
			}
		})
	}
	all.Wait()
	fmt.Println("done")
}
