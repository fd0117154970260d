package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Sessions whose first bytes a matcher has read are detached like all others: Handle has returned, and layer4's goroutine with it.
func TestSessionsBehindMatchersHaveNoGoroutine(t *testing.T) {
	t.Parallel()
	const sessions = 500
	matchers := map[string]gate.JSON{
		"none":   nil,
		"ssh":    {"ssh": gate.JSON{}},
		"regexp": {"regexp": gate.JSON{"pattern": "^SSH-2", "count": len("SSH-2")}},
	}
	for name, matcher := range matchers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, addr := startMatching(t, "gate+tcp", matcher)
			must(t, helloSSH(dial(t, addr))) // the event loops have started
			before := p.Goroutines()
			for range sessions {
				must(t, helloSSH(dial(t, addr)))
			}
			gate.Eventually(t, peerTimeout, func() error {
				if now := p.Goroutines(); now > before {
					return fmt.Errorf("%d goroutines with %d idle sessions, %d with one", now, sessions, before)
				}
				return nil
			})
			if active := p.Metrics().Sum("caddy_portgate_sessions_active"); active != sessions+1 {
				t.Errorf("%v sessions are active, want %d", active, sessions+1)
			}
		})
	}
	// The same count where a connection can't be detached: it does count what it is meant to.
	t.Run("stock network", func(t *testing.T) {
		t.Parallel()
		p, addr := startMatching(t, "tcp", matchers["ssh"])
		must(t, helloSSH(dial(t, addr)))
		before := p.Goroutines()
		const few = 20
		for range few {
			must(t, helloSSH(dial(t, addr)))
		}
		if now := p.Goroutines(); now < before+few {
			t.Errorf("%d goroutines with %d sessions more, %d before", now, few, before)
		}
	})
}

func startMatching(t testing.TB, network string, matcher gate.JSON) (p *gate.Process, addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	server := gate.Listen(network+"/"+addr, gate.Forward(startEchoProcess(t)))
	if matcher != nil {
		server.Routes[0].Match = []gate.JSON{matcher}
	}
	return gate.Start(t, gate.Layer4(server)), addr
}

// helloSSH requires what a matcher has read, and an exchange after it.
func helloSSH(conn net.Conn) error {
	const hello = "SSH-2.0-test\r\n"
	if _, err := conn.Write([]byte(hello)); err != nil {
		return err
	}
	got := make([]byte, len(hello))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != hello {
		return fmt.Errorf("got %q back (%v), want %q", got[:n], err, hello)
	}
	return exchange(conn)
}

// A session that was accepted with the last descriptor waits for one to connect with, as long as connecting may take.
func TestConnectWaitsForADescriptor(t *testing.T) {
	t.Parallel()
	const connectTimeout = 2 * time.Second
	p, addr, patient, fill := startShort(t, connectTimeout)
	t.Run("there is one in time", func(t *testing.T) {
		free := fill(t)
		start := time.Now()
		client := dial(t, patient)
		mustWrite(t, client, "x")
		mustHold(t, p, files)
		mustStayOpen(t, client, connectTimeout/2)
		free()
		mustRead(t, client, "x")
		waited := time.Since(start)
		clientPort := port(client)
		client.Close()
		s := p.WaitSession(clientPort)
		if s.Status != 200 || s.BytesUp != 1 || s.BytesDown != 1 || s.ConnectDuration < (connectTimeout/2).Seconds() || s.ConnectDuration > waited.Seconds() {
			t.Errorf("access log of a session that waited for at most %v: %s", waited, s.Line)
		}
	})
	t.Run("there is none in time", func(t *testing.T) {
		free := fill(t)
		defer free()
		start := time.Now()
		client := dial(t, addr)
		mustHold(t, p, files)
		clientPort := port(client)
		mustReset(t, client)
		if took := time.Since(start); took < connectTimeout || took > connectTimeout+tolerance {
			t.Errorf("the client was reset after %v, want %v to %v", took, connectTimeout, connectTimeout+tolerance)
		}
		if s := p.WaitSession(clientPort); s.Status != 502 && s.Status != 504 || s.Error == "" {
			t.Errorf("access log: %s", s.Line)
		}
	})
}

// files is the nofile limit of a process that runs short of descriptors.
const files = 64

// startShort starts a process with few descriptors and two ports that forward to an echo: addr with the connect timeout that is given,
// patient with one that no test reaches. The function fill takes all descriptors but one, and returns what frees them.
func startShort(t *testing.T, connectTimeout time.Duration) (p *gate.Process, addr, patient string, fill func(t *testing.T) (free func())) {
	t.Helper()
	upstream := startEchoProcess(t)
	addr, patient = gate.ReserveAddr(t), gate.ReserveAddr(t)
	// These wait in a matcher, with one descriptor each.
	waiting := gate.ReserveAddr(t)
	matching := gate.Listen(waiting, gate.Forward(upstream))
	matching.Routes[0].Match = []gate.JSON{{"ssh": gate.JSON{}}}
	matching.MatchingTimeout = peerTimeout.String()
	p = gate.Start(t, gate.Layer4(
		gate.Listen(addr, gate.Forward(upstream).With("connect_timeout", connectTimeout.String()).With("retries", 0)),
		gate.Listen(patient, gate.Forward(upstream).With("connect_timeout", peerTimeout.String())),
		matching,
	).WithApp("portgate", gate.JSON{"max_sessions": files, "reserve_descriptors": 0}), gate.WithFiles(files))
	must(t, oneRequest(addr)) // the event loops have their descriptors
	return p, addr, patient, func(t *testing.T) func() {
		t.Helper()
		var taken []net.Conn
		for n := settledDescriptors(t, p); n < files-1; n++ {
			taken = append(taken, dial(t, waiting))
			mustHold(t, p, n+1)
		}
		return func() {
			for _, conn := range taken {
				conn.Close()
			}
		}
	}
}

// mustHold waits until the process has so many descriptors.
func mustHold(t *testing.T, p *gate.Process, want int) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		if n := limitedDescriptors(t, p); n != want {
			return fmt.Errorf("%d descriptors, want %d", n, want)
		}
		return nil
	})
}

// limitedDescriptors counts those that the limit is about. What a process inherits may have a number beyond it.
func limitedDescriptors(t *testing.T, p *gate.Process) (n int) {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	must(t, err)
	for _, entry := range open {
		if number, _ := strconv.Atoi(entry.Name()); number < files {
			n++
		}
	}
	return n
}

// settledDescriptors returns their number once it does not change any more: what the process did before may have some still open.
func settledDescriptors(t *testing.T, p *gate.Process) (n int) {
	t.Helper()
	const still = 20 // polls without a change
	same := 0
	gate.Eventually(t, peerTimeout, func() error {
		if now := limitedDescriptors(t, p); now == n {
			same++
		} else {
			n, same = now, 0
		}
		if same < still {
			return fmt.Errorf("the number of descriptors changes: %d", n)
		}
		return nil
	})
	return n
}

// mustStayOpen requires that nothing comes for so long, and no end.
func mustStayOpen(t *testing.T, conn net.Conn, d time.Duration) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(d))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("got %d bytes and %v, want neither for %v", n, err, d)
	}
	conn.SetReadDeadline(time.Now().Add(peerTimeout))
}

// aMinute is for how long sessions are left alone. The event loops look at a session for the first time after less, where no limit of
// it is nearer, and set up then what no short session needs.
const aMinute = 60 * time.Second

// leftAlone lets the rest of a test run together with the parallel ones, which is when those that have the machine for themselves are
// through, and a minute after start at the earliest. As they take longer than that, nobody waits for it. On a busy machine they take longer
// than idle_timeout, too.
func leftAlone(t *testing.T, start time.Time) {
	t.Parallel()
	<-time.After(time.Until(start.Add(aMinute)))
}

// While a client takes nothing of what the upstream would send, nothing happens: the process waits, and does not try again and again.
func TestClientThatNeverReadsCostsNoCPU(t *testing.T) {
	const (
		n = 64 * mib // more than all buffers on the way hold
		// What the Go runtime and Caddy's own timers take.
		tolerated = time.Second / 1000 // per second
	)
	type stuck struct {
		p                *gate.Process
		client, upstream *net.TCPConn
		sent             <-chan result
		since            time.Time
		before           time.Duration
	}
	sessions := make(map[string]*stuck)
	for _, network := range []string{"gate+tcp", "tcp"} {
		s := new(stuck)
		s.p, s.client, s.upstream = startPair(t, network, gate.JSON{"idle_timeout": "24h"}, gate.WithoutRace())
		s.client.SetDeadline(time.Time{})
		s.upstream.SetDeadline(time.Time{})
		s.sent = sending(s.upstream, n)
		mustDrain(t, s.upstream, false)
		s.since, s.before = time.Now(), s.p.CPUTime()
		sessions[network] = s
	}
	leftAlone(t, sessions["tcp"].since)
	for network, s := range sessions {
		used, elapsed := s.p.CPUTime()-s.before, time.Since(s.since)
		t.Logf("%s: %v of CPU in %v", network, used, elapsed.Round(time.Second))
		if used.Seconds() > tolerated.Seconds()*elapsed.Seconds() {
			t.Errorf("%s: %v of CPU in %v while the client did not read, want at most %v each second", network, used, elapsed, tolerated)
		}
		select {
		case <-s.sent:
			t.Errorf("%s: %d bytes were taken in while nobody read them: the wait means nothing", network, n)
		default:
		}
		if network == "gate+tcp" && s.p.SocketOf(s.client).UserTimeout == 0 {
			t.Error("the client's socket has no TCP_USER_TIMEOUT: a client that is stuck would be held for ever")
		}
		received := receiving(s.client)
		mustArrive(t, network, within(t, peerTimeout, "sending", s.sent), within(t, peerTimeout, "receiving", received), n)
	}
}

// The option reaches both sockets of a session that has lived for a while.
func TestKeepAlive(t *testing.T) {
	cases := []struct {
		option string
		want   gate.Socket
	}{
		{"", gate.Socket{KeepAlive: true, KeepAliveIdle: time.Minute, KeepAliveInterval: 10 * time.Second, KeepAliveCount: 3}},
		{"40m", gate.Socket{KeepAlive: true, KeepAliveIdle: 40 * time.Minute, KeepAliveInterval: 400 * time.Second, KeepAliveCount: 3}},
		{"0s", gate.Socket{}},
	}
	networks := []string{"gate+tcp", "tcp"}
	upstream, accepted := accepting(t)
	var servers []gate.Server
	var addrs []string
	for _, network := range networks {
		for _, c := range cases {
			forward := gate.Forward(upstream).With("idle_timeout", "24h")
			if c.option != "" {
				forward = forward.With("keepalive", c.option)
			}
			addrs = append(addrs, gate.ReserveAddr(t))
			servers = append(servers, gate.Listen(network+"/"+addrs[len(addrs)-1], forward))
		}
	}
	p := gate.Start(t, gate.Layer4(servers...))
	start := time.Now()
	ends := make([][2]*net.TCPConn, len(addrs))
	for i, addr := range addrs {
		ends[i][0], ends[i][1] = pair(t, addr, accepted)
	}
	leftAlone(t, start)
	for i, network := range networks {
		for j, c := range cases {
			for k, side := range []string{"client", "upstream"} {
				got := p.SocketOf(ends[i*len(cases)+j][k])
				if !c.want.KeepAlive {
					got = gate.Socket{KeepAlive: got.KeepAlive} // the rest means nothing
				}
				if got != c.want {
					t.Errorf("%s, keepalive %q, the %s's socket: %+v, want %+v", network, c.option, side, got, c.want)
				}
			}
		}
	}
}
