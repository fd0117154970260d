package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// `caddy validate` refuses what could not start, or would listen elsewhere than was meant.
func TestValidateLooksAtListenAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ servers, want string }{
		{"gate+upd/:5353 { %s }", `listen address "gate+upd/:5353" of server "srv0": unknown network "gate+upd": expected gate+udp`},
		{"gate+tcp/127.0.0.1 { %s }", `listen address "gate+tcp/127.0.0.1" of server "srv0": expected a port, as in gate+tcp/127.0.0.1:8080`},
		{"gate+tcp/:7000 gate+tcp/127.0.0.1:7000 { %s }", `listen address "gate+tcp/127.0.0.1:7000" of server "srv0": expected each address once, but listen address "gate+tcp/:7000" of server "srv0" is the same or overlaps`},
		{"gate+tcp/:7000 { %s }\n gate+tcp/0.0.0.0:7000 { %[1]s }", `listen address "gate+tcp/0.0.0.0:7000" of server "srv1": expected each address once, but listen address "gate+tcp/:7000" of server "srv0" is the same or overlaps`},
		{"unix/run/gate.sock { %s }", `listen address "unix/run/gate.sock" of server "srv0": expected a path from the root, with two slashes: unix//run/gate.sock`},
		{"unix+h2c//run/gate.sock { %s }", `listen address "unix+h2c//run/gate.sock" of server "srv0": unknown network "unix+h2c": expected unix, unixgram or unixpacket`},
		{"ip/127.0.0.1 { %s }", `listen address "ip/127.0.0.1" of server "srv0": unknown network "ip": expected tcp or udp, because Caddy can't listen on raw IP`},
		{"gate+unix//run/gate.sock { %s }", `listen address "gate+unix//run/gate.sock" of server "srv0": unknown network "gate+unix": expected unix, which has no gate network`},
		{"gate+tcp4/:7000 { %s }\n gate+tcp6/:7000 { %[1]s }", ""},
		{"fd/3 { %s }", ""},
		{"gate+fd/3 { %s }\n fdgram/4 { route { acl { deny 192.0.2.1 } } }", ""},
	} {
		path := filepath.Join(t.TempDir(), "Caddyfile")
		servers := strings.ReplaceAll(fmt.Sprintf(c.servers, "route {\n forward 127.0.0.1:9\n }"), "{ ", "{\n")
		servers = strings.ReplaceAll(servers, " }", "\n}")
		must(t, os.WriteFile(path, []byte("{\nlayer4 {\n"+servers+"\n}\n}\n"), 0o600))
		_, said, code := gate.Run(t, gate.Plain, "validate", "--config", path, "--adapter", "caddyfile")
		said = strings.ReplaceAll(said, `\"`, `"`) // the log is JSON
		if c.want == "" && code != 0 || c.want != "" && (code == 0 || !strings.Contains(said, c.want)) {
			t.Errorf("%s: exit code %d\ngot  %s\nwant %s", servers, code, said, c.want)
		}
	}
}

// Sockets that the process was started with serve through all handlers, over reloads, by the gate networks and by Caddy's own. Sessions of
// TCP go on meanwhile.
func TestInheritedSockets(t *testing.T) {
	t.Parallel()
	upstream := serve(t, echo)
	udpUpstream := serveUDP(t, echoUDP)
	var sockets []*os.File
	var addrs []string
	for i := range 4 {
		var socket interface{ File() (*os.File, error) }
		if i%2 == 0 {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer ln.Close()
			socket = ln.(*net.TCPListener)
			addrs = append(addrs, ln.Addr().String())
		} else {
			conn, err := net.ListenPacket("udp", "127.0.0.1:0")
			must(t, err)
			defer conn.Close()
			socket = conn.(*net.UDPConn)
			addrs = append(addrs, conn.LocalAddr().String())
		}
		file, err := socket.File()
		must(t, err)
		defer file.Close()
		sockets = append(sockets, file)
	}
	config := func(rate string) gate.JSON {
		var servers []gate.Server
		for i, network := range []string{"gate+fd", "gate+fdgram", "fd", "fdgram"} {
			to := upstream
			if i%2 == 1 {
				to = "udp/" + udpUpstream
			}
			servers = append(servers, gate.Listen(fmt.Sprintf("%s/%d", network, 3+i), acl("deny 192.0.2.1"),
				gate.JSON{"handler": "rate_limit", "connections": []gate.JSON{{"rate": rate}}}, gate.Forward(to)))
		}
		return gate.Layer4(servers...)
	}
	p := gate.Start(t, config("1000/s"), gate.WithSockets(sockets...))
	living := []net.Conn{dial(t, addrs[0]), dial(t, addrs[2])}
	for i := range 10 {
		for j, addr := range addrs {
			if j%2 == 0 {
				must(t, oneRequest(addr))
				continue
			}
			mustAnswerUDP(t, addr, 10*time.Second)
		}
		for _, conn := range living {
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			must(t, exchange(conn))
		}
		p.Load(config(fmt.Sprintf("%d/s", 1001+i)))
	}
	for i, want := range []string{"fd/3", "fdgram/4", ":" + portOf(addrs[2]), ":" + portOf(addrs[3])} {
		p.WaitSessions(1, func(s gate.Session) bool { return s.Listener == want && s.Network == []string{"tcp", "udp"}[i%2] })
	}
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// A reload changes an address to one that overlaps it, and back, while clients of TCP and UDP are at it: nothing is lost.
func TestReloadChangesAnAddress(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	upstream, udpUpstream := serve(t, echo), serveUDP(t, echoUDP)
	config := func(host string) gate.JSON {
		listen := net.JoinHostPort(host, portOf(addr))
		return gate.Layer4(gate.Listen(listen, gate.Forward(upstream)), gate.ListenUDP(listen, gate.Forward("udp/"+udpUpstream)))
	}
	p := gate.Start(t, config("127.0.0.1"))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var asked atomic.Int64
	every := func(pause time.Duration, do func() error) {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
				if err := do(); err != nil {
					t.Errorf("lost: %v", err)
					return
				}
				asked.Add(1)
			}
		})
	}
	living := dial(t, addr)
	for range 2 {
		every(10*time.Millisecond, func() error { return oneRequest(addr) })
		client := dialUDP(t, addr)
		every(10*time.Millisecond, func() error {
			client.SetDeadline(time.Now().Add(peerTimeout))
			return exchange(client)
		})
	}
	for i := range 20 {
		p.Load(config([]string{"", "127.0.0.1"}[i%2]))
	}
	close(stop)
	clients.Wait()
	living.SetDeadline(time.Now().Add(10 * time.Second))
	must(t, exchange(living))
	t.Logf("%d connections and questions", asked.Load())
}

// A question that is under way when a reload changes the address is answered, though the upstream takes its time.
func TestReloadChangesAnAddressDuringAQuestion(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	const takes = time.Second
	asked := make(chan struct{}, 2)
	upstream := serveUDP(t, func(_ netip.AddrPort, b []byte) []byte {
		asked <- struct{}{}
		<-time.After(takes)
		return b
	})
	config := func(host string) gate.JSON {
		return gate.Layer4(gate.ListenUDP(net.JoinHostPort(host, portOf(addr)), gate.Forward("udp/"+upstream)))
	}
	p := gate.Start(t, config("127.0.0.1"))
	for _, host := range []string{"", "127.0.0.1"} {
		client := dialUDP(t, addr)
		client.SetDeadline(time.Now().Add(peerTimeout))
		answered := make(chan error, 1)
		go func() { answered <- exchange(client) }()
		<-asked
		p.Load(config(host))
		must(t, within(t, peerTimeout, "answer", answered))
	}
}
