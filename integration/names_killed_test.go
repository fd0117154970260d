package integration

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// startUnbound runs an unbound that knows the name by one address.
func startUnbound(t *testing.T, ip, answer string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t, "unbound"), "-d", "-c", writeFile(t, "unbound.conf", fmt.Sprintf(`server:
	directory: "%s"
	chroot: ""
	username: ""
	pidfile: ""
	use-syslog: no
	do-daemonize: no
	module-config: "iterator"
	interface: %s@%d
	access-control: 127.0.0.0/8 allow
	local-zone: "%s." static
	local-data: "%s. A %s"
remote-control:
	control-enable: no
`, t.TempDir(), ip, dnsPort, hostName, hostName, answer)))
	server(t, net.JoinHostPort(ip, strconv.Itoa(dnsPort)), cmd)
	return cmd
}

// The name server is killed, so that the system refuses what is sent to it, and comes back with another address for the name: no session
// is refused meanwhile, nor after reloads.
func TestNameServerThatIsKilled(t *testing.T) {
	t.Parallel()
	place := nameServerSocket(t)
	ip := hostOf(place.LocalAddr())
	place.Close()
	dns := startUnbound(t, ip, "127.0.0.1")
	first := serve(t, greet("first"))
	_, upstreamPort, _ := net.SplitHostPort(first)
	serveAt(t, net.JoinHostPort("127.0.0.2", upstreamPort), greet("second"))
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, toName(t, first)))
	p := gate.Start(t, config, resolvConf(t, "timeout:1 attempts:1", ip))
	mustGreet(t, addr, "first")

	must(t, dns.Process.Kill())
	whileSessions(t, addr, func() {
		gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_degraded", 1, label("what", "name")) })
		for range 3 {
			p.Load(config)
			mustGreet(t, addr, "first")
		}
	})
	if !strings.Contains(p.Output(), "connection refused") {
		t.Errorf("the log does not say why the name can't be looked up:\n%s", p.Output())
	}
	startUnbound(t, ip, "127.0.0.2")
	gate.Eventually(t, peerTimeout, func() error {
		return errors.Join(greeting(addr, "second"), equal(p.Metrics(), "caddy_portgate_degraded", 0, label("what", "name")))
	})
}
