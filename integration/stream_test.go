package integration

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// halfCloser is a connection whose directions end one by one: TCP, and TLS with its close_notify.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// sending runs send in the background and ends the direction when it is through.
func sending(conn halfCloser, n int64) <-chan result {
	done := make(chan result, 1)
	go func() {
		sent, err := send(conn, n)
		if err == nil {
			err = conn.CloseWrite()
		}
		done <- result{sent, err}
	}()
	return done
}

// receiving runs receive in the background.
func receiving(r io.Reader) <-chan result {
	done := make(chan result, 1)
	go func() {
		got, err := receive(r)
		done <- result{got, err}
	}()
	return done
}

// accepting is an upstream for one connection that the test itself drives; the connection is closed with the test.
func accepting(t testing.TB) (addr string, accepted <-chan *net.TCPConn) {
	t.Helper()
	conns := make(chan *net.TCPConn, 16)
	over := make(chan struct{})
	addr = serve(t, func(conn *net.TCPConn) {
		conns <- conn
		<-over
	})
	t.Cleanup(func() { close(over) })
	return addr, conns
}

// pair is a session that is under way, seen from both ends.
func pair(t testing.TB, addr string, accepted <-chan *net.TCPConn) (client, upstream *net.TCPConn) {
	t.Helper()
	client = dial(t, addr)
	return client, within(t, peerTimeout, "the upstream's accept", accepted)
}

// startForwarding starts a process that forwards to one upstream, with the default options or with others.
func startForwarding(t testing.TB, network string, options gate.JSON, opts ...gate.Option) (p *gate.Process, addr string, accepted <-chan *net.TCPConn) {
	t.Helper()
	upstream, accepted := accepting(t)
	forward := gate.Forward(upstream)
	for name, value := range options {
		forward = forward.With(name, value)
	}
	addr = gate.ReserveAddr(t)
	return gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, forward)), opts...), addr, accepted
}

// startPair starts such a process and opens a session.
func startPair(t testing.TB, network string, options gate.JSON, opts ...gate.Option) (p *gate.Process, client, upstream *net.TCPConn) {
	t.Helper()
	p, addr, accepted := startForwarding(t, network, options, opts...)
	client, upstream = pair(t, addr, accepted)
	return p, client, upstream
}

// onEachNetwork runs a test on a network whose connections forward's event loops take over, and on one where they can't.
func onEachNetwork(t *testing.T, test func(t *testing.T, network string)) {
	t.Helper()
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			test(t, network)
		})
	}
}

func TestGibibyteEachWayArrivesUnchanged(t *testing.T) {
	const n = 1 << 30
	p, client, upstream := startPair(t, "gate+tcp", nil, gate.WithoutRace())
	start := time.Now()
	up, down := sending(client, n), sending(upstream, n)
	upGot, downGot := receiving(upstream), receiving(client)
	mustArrive(t, "up", within(t, connTimeout, "sending up", up), within(t, connTimeout, "receiving up", upGot), n)
	mustArrive(t, "down", within(t, connTimeout, "sending down", down), within(t, connTimeout, "receiving down", downGot), n)
	t.Logf("1 GiB each way at once in %v", time.Since(start).Round(time.Millisecond))
	if s := p.WaitSession(port(client)); s.BytesUp != n || s.BytesDown != n || s.Status != 200 {
		t.Errorf("access log: %s", s.Line)
	}
}

func TestReaderThatPausesGetsEveryByteAndFIN(t *testing.T) {
	t.Parallel()
	for _, direction := range []string{"up", "down"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			onEachNetwork(t, func(t *testing.T, network string) {
				_, client, upstream := startPair(t, network, nil)
				from, to := client, upstream
				if direction == "down" {
					from, to = upstream, client
				}
				sendToReaderThatPauses(t, direction, from, to)
			})
		})
	}
}

func sendToReaderThatPauses(t *testing.T, direction string, from, to *net.TCPConn) {
	t.Helper()
	// More than what the buffers of the sockets may take in: of those that receive, Linux lets one grow to 32 MiB, and of those that send to 4 MiB.
	const n = 100 * mib
	sent := sending(from, n)
	first := make([]byte, 4*mib)
	if _, err := io.ReadFull(to, first); err != nil {
		t.Fatal(err)
	}
	select {
	case result := <-sent:
		t.Fatalf("%d bytes were taken in while nobody read them, the pause means nothing: %v", result.bytes, result.err)
	case <-time.After(2 * time.Second): // the reader's pause
	}
	received := receiving(io.MultiReader(bytes.NewReader(first), to))
	mustArrive(t, direction, within(t, peerTimeout, "sending", sent), within(t, peerTimeout, "receiving", received), n)
}

// A FIN passes while the other direction goes on, and takes nothing from it.
func TestFINIsPassedOnWhileDataFlowsTheOtherWay(t *testing.T) {
	const rounds = 5
	_, addr, accepted := startForwarding(t, "gate+tcp", nil, gate.WithoutRace())
	for _, finisher := range []string{"client", "upstream"} {
		t.Run(finisher+" finishes", func(t *testing.T) {
			for range rounds {
				client, upstream := pair(t, addr, accepted)
				first, other := client, upstream
				if finisher == "upstream" {
					first, other = upstream, client
				}
				t.Logf("FIN passed on after %v", finishWhileReceiving(t, first, other))
			}
		})
	}
}

// finishWhileReceiving has other send to first without a pause until it has seen the FIN with which first ends its direction in the middle of
// that, and returns how long it took until other knew.
func finishWhileReceiving(t *testing.T, first, other *net.TCPConn) time.Duration {
	t.Helper()
	const before = 16 * mib
	known := make(chan struct{})
	sent := make(chan result, 1)
	go func() {
		all, err := send(writerUntil{other, known}, 1<<40)
		if errors.Is(err, errNoMore) {
			err = other.CloseWrite()
		}
		sent <- result{all, err}
	}()
	finSeen := make(chan time.Time, 1)
	go func() {
		if n, err := other.Read(make([]byte, 1)); n == 0 && err == io.EOF {
			finSeen <- time.Now()
			close(known)
		}
	}()
	head := make([]byte, before)
	if _, err := io.ReadFull(first, head); err != nil {
		t.Fatal(err)
	}
	received := receiving(io.MultiReader(bytes.NewReader(head), first))
	finished := time.Now()
	must(t, first.CloseWrite())
	passed := within(t, peerTimeout, "the FIN", finSeen).Sub(finished)
	all := within(t, peerTimeout, "sending", sent)
	mustArrive(t, "the other direction", all, within(t, peerTimeout, "receiving", received), all.bytes)
	return passed
}

// writerUntil writes until a channel is closed.
type writerUntil struct {
	io.Writer
	over <-chan struct{}
}

var errNoMore = errors.New("no more")

func (w writerUntil) Write(b []byte) (int, error) {
	select {
	case <-w.over:
		return 0, errNoMore
	default:
		return w.Writer.Write(b)
	}
}

// A reset does not overtake the data that was received before it, however slowly the other end reads.
func TestResetArrivesAfterTheDataBeforeIt(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		pause  time.Duration // the receiver begins to read so long after the reset
		buffer int           // the receiver's buffer; 0: the system's
	}{
		"receiver reads at once":                      {},
		"receiver pauses":                             {pause: time.Second},
		"receiver pauses with a small receive buffer": {pause: time.Second, buffer: 16 << 10},
	}
	for _, sender := range []string{"upstream", "client"} {
		for name, c := range cases {
			t.Run(sender+" resets, "+name, func(t *testing.T) {
				t.Parallel()
				onEachNetwork(t, func(t *testing.T, network string) {
					p, client, upstream := startPair(t, network, nil)
					clientPort := port(client)
					from, to := upstream, client
					if sender == "client" {
						from, to = client, upstream
					}
					arrived, got := resetAfterData(t, from, to, c.pause, c.buffer)
					if got.bytes < arrived || !errors.Is(got.err, syscall.ECONNRESET) {
						t.Errorf("got %d bytes and %v, want at least the %d that had arrived and a reset", got.bytes, got.err, arrived)
					}
					s := p.WaitSession(clientPort)
					if moved := s.BytesDown + s.BytesUp; s.Reason != sender+"_reset" || moved != got.bytes {
						t.Errorf("access log (got %d bytes): %s", got.bytes, s.Line)
					}
				})
			})
		}
	}
}

// resetAfterData sends 1 MiB and then a reset. It returns how much of it was out of the sender's hands at the reset, and
// what the receiver got.
func resetAfterData(t *testing.T, from, to *net.TCPConn, pause time.Duration, buffer int) (arrived int64, got result) {
	t.Helper()
	if buffer > 0 {
		must(t, to.SetReadBuffer(buffer))
	}
	var received <-chan result
	if pause == 0 {
		received = receiving(to)
	}
	const n = mib
	if sent, err := send(from, n); err != nil || sent.bytes != n {
		t.Fatalf("sent %d bytes: %v", sent.bytes, err)
	}
	// A reset throws away what the sender's kernel still holds. Only what the process has received can be passed on.
	arrived = n - mustDrain(t, from, pause == 0)
	reset(from)
	if pause > 0 {
		<-time.After(pause) // the receiver does nothing: that is the case
		received = receiving(to)
	}
	return arrived, within(t, peerTimeout, "receiving", received)
}

func TestClientResetClosesUpstreamWithinASecond(t *testing.T) {
	t.Parallel()
	t.Run("nothing moves", func(t *testing.T) {
		t.Parallel()
		onEachNetwork(t, func(t *testing.T, network string) {
			p, client, upstream := startPair(t, network, nil)
			mustWrite(t, client, "x")
			mustRead(t, upstream, "x")
			clientPort := port(client)
			reset(client)
			upstream.SetDeadline(time.Now().Add(time.Second + tolerance))
			mustReset(t, upstream)
			if s := p.WaitSession(clientPort); s.Reason != "client_reset" || s.Status != 200 {
				t.Errorf("access log: %s", s.Line)
			}
		})
	})
	t.Run("upstream sends", func(t *testing.T) {
		t.Parallel()
		onEachNetwork(t, func(t *testing.T, network string) {
			p, client, upstream := startPair(t, network, nil)
			over := sendForever(upstream)
			if _, err := io.ReadFull(client, make([]byte, 16*mib)); err != nil {
				t.Fatal(err)
			}
			clientPort := port(client)
			reset(client)
			if end := within(t, time.Second+tolerance, "the upstream's end", over); end.err == nil {
				t.Error("the upstream could send on")
			}
			if s := p.WaitSession(clientPort); s.Reason != "client_reset" {
				t.Errorf("access log: %s", s.Line)
			}
		})
	})
}

func TestNetcatHalfClose(t *testing.T) {
	t.Parallel()
	// The upstream answers only when it has seen the FIN, as many old protocols do.
	upstream := serve(t, func(conn *net.TCPConn) {
		all, err := io.ReadAll(conn)
		if err == nil {
			io.WriteString(conn, "got: "+strings.ToUpper(string(all)))
		}
	})
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(upstream))))
	host, portNumber, _ := net.SplitHostPort(addr)
	nc := exec.CommandContext(t.Context(), program(t, "nc"), "-N", host, portNumber)
	nc.Stdin = strings.NewReader("a question")
	out, err := nc.CombinedOutput()
	if err != nil || string(out) != "got: A QUESTION" {
		t.Errorf("nc -N: %v, output %q", err, out)
	}
	if s := p.WaitSessions(1, nil)[0]; s.Reason != "client_fin" || s.Status != 200 {
		t.Errorf("access log: %s", s.Line)
	}
}
