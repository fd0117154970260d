package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// maxDatagram is more than a datagram can have.
const maxDatagram = 64 << 10

// listenUDP is an upstream that the test itself reads and writes.
func listenUDP(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serveUDP is an upstream for datagrams: what handle returns for one goes back, nothing for nil.
func serveUDP(t testing.TB, handle func(from netip.AddrPort, b []byte) []byte) (addr string) {
	t.Helper()
	conn := listenUDP(t, "127.0.0.1:0")
	answerUDP(t, conn, handle)
	return conn.LocalAddr().String()
}

// answerUDP answers until the connection is closed.
func answerUDP(t testing.TB, conn *net.UDPConn, handle func(from netip.AddrPort, b []byte) []byte) (ended <-chan struct{}) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if answer := handle(from, b[:n]); answer != nil {
				_, _ = conn.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-over
	})
	return over
}

func echoUDP(_ netip.AddrPort, b []byte) []byte { return b }

// tellUDP is an echo that says its name and where the datagram came from, which is the process's upstream socket.
func tellUDP(name string) func(from netip.AddrPort, b []byte) []byte {
	return func(from netip.AddrPort, b []byte) []byte { return fmt.Appendf(nil, "%s %s %s", name, from, b) }
}

// dialUDP is a client; it is closed with the test.
func dialUDP(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	return dialUDPFrom(t, "", addr)
}

// dialUDPFrom is dialUDP for a client with this address.
func dialUDPFrom(t testing.TB, ip, addr string) *net.UDPConn {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}).Dial("udp", addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(connTimeout))
	return conn.(*net.UDPConn)
}

// ask sends a message to an upstream of tellUDP and returns what it told.
func ask(conn net.Conn, message string) (name, source string, err error) {
	if _, err := io.WriteString(conn, message); err != nil {
		return "", "", err
	}
	b := make([]byte, maxDatagram)
	n, err := conn.Read(b)
	if err != nil {
		return "", "", err
	}
	told := strings.SplitN(string(b[:n]), " ", 3)
	if len(told) != 3 || told[2] != message {
		return "", "", fmt.Errorf("got %q, want a name, an address and %q", b[:n], message)
	}
	return told[0], told[1], nil
}

// mustAsk is ask for an upstream that must have this name. It returns the process's upstream socket.
func mustAsk(t testing.TB, conn net.Conn, name string) (source string) {
	t.Helper()
	told, source, err := ask(conn, "message")
	if err != nil || told != name {
		t.Fatalf("the upstream says that it is %q (%v), want %q", told, err, name)
	}
	return source
}

// mustBeSilent requires that no datagram comes for so long.
func mustBeSilent(t testing.TB, conn *net.UDPConn, duration time.Duration) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(duration))
	defer conn.SetReadDeadline(time.Now().Add(peerTimeout))
	b := make([]byte, maxDatagram)
	if n, err := conn.Read(b); !isTimeout(err) {
		t.Fatalf("got %q (%v), want nothing for %v", b[:n], err, duration)
	}
}

// mustAnswerUDP sends now and then, each time as a new client, until there is an answer, and returns how long that took.
func mustAnswerUDP(t testing.TB, addr string, timeout time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	gate.Eventually(t, timeout, func() error {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
		return exchange(conn)
	})
	return time.Since(start)
}

// asker sends a message at intervals, whether there is an answer to the last or not, and notes what is answered.
type asker struct {
	conn               *net.UDPConn
	stop               chan struct{}
	sending, receiving sync.WaitGroup

	mu   sync.Mutex
	sent []time.Time
	took map[uint64]time.Duration

	refused int // times that nobody has listened
	err     error
}

// messageOf is what an asker sends: a number in a datagram of 64 bytes.
func messageOf(number uint64) []byte {
	message := make([]byte, 64)
	binary.BigEndian.PutUint64(message, number)
	return message
}

// startAsking asks an upstream that answers with an echo.
func startAsking(conn *net.UDPConn, every time.Duration) *asker {
	a := &asker{conn: conn, stop: make(chan struct{}), took: make(map[uint64]time.Duration)}
	a.receiving.Go(a.receive)
	a.sending.Go(func() { a.send(every) })
	return a
}

func (a *asker) send(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for number := uint64(0); ; number++ {
		a.mu.Lock()
		a.sent = append(a.sent, time.Now())
		a.mu.Unlock()
		if _, err := a.conn.Write(messageOf(number)); err != nil {
			a.fail(err)
		}
		select {
		case <-a.stop:
			return
		case <-tick.C:
		}
	}
}

func (a *asker) receive() {
	b := make([]byte, maxDatagram)
	for {
		n, err := a.conn.Read(b)
		now := time.Now()
		if isTimeout(err) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 64 {
			a.fail(fmt.Errorf("got %d bytes and %w", n, err))
			continue
		}
		number := binary.BigEndian.Uint64(b)
		a.mu.Lock()
		if _, again := a.took[number]; again || number >= uint64(len(a.sent)) {
			a.mu.Unlock()
			a.fail(fmt.Errorf("message %d came, of %d, and before: %v", number, len(a.sent), again))
			continue
		}
		a.took[number] = now.Sub(a.sent[number])
		a.mu.Unlock()
	}
}

// fail notes the first error. That nobody listens at the moment is none for everybody.
func (a *asker) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if isRefused(err) {
		a.refused++
	} else if a.err == nil {
		a.err = err
	}
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// finish stops, waits for some seconds at most for answers that are missing, and returns how many messages were sent and how long each
// answer took, sorted.
func (a *asker) finish(t testing.TB) (sent int, took []time.Duration) {
	t.Helper()
	close(a.stop)
	a.sending.Wait()
	deadline := time.Now().Add(tolerance)
	for a.missing() > 0 && time.Now().Before(deadline) {
		<-time.After(time.Millisecond)
	}
	a.conn.SetReadDeadline(time.Unix(1, 0))
	a.receiving.Wait()
	a.conn.SetReadDeadline(time.Now().Add(connTimeout))
	if a.err != nil {
		t.Errorf("a client that asks at intervals: %v", a.err)
	}
	for _, d := range a.took {
		took = append(took, d)
	}
	slices.Sort(took)
	return len(a.sent), took
}

// abandon stops and closes the connection, whatever is answered.
func (a *asker) abandon() {
	close(a.stop)
	a.sending.Wait()
	a.conn.Close()
	a.receiving.Wait()
}

func (a *asker) missing() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sent) - len(a.took)
}

// droppedBySystem is how many datagrams the system has dropped so far that were for the sockets at these addresses, or for those that are
// connected to them, because a buffer was full. That a busy machine may do, before the process gets to see them. What is missing
// beyond was lost by the process.
func droppedBySystem(t testing.TB, addrs ...string) (n int) {
	t.Helper()
	var ports []string
	for _, addr := range addrs {
		ports = append(ports, fmt.Sprintf(":%04X", netip.MustParseAddrPort(addr).Port()))
	}
	of := func(address string) bool {
		return slices.ContainsFunc(ports, func(port string) bool { return strings.HasSuffix(address, port) })
	}
	for _, file := range []string{"/proc/net/udp", "/proc/net/udp6"} { // proc(5)
		sockets, err := os.ReadFile(file)
		must(t, err)
		for line := range strings.Lines(string(sockets)) {
			if columns := strings.Fields(line); len(columns) > 3 && (of(columns[1]) || of(columns[2])) {
				drops, err := strconv.Atoi(columns[len(columns)-1])
				must(t, err)
				n += drops
			}
		}
	}
	processors, err := os.ReadFile("/proc/net/softnet_stat") // what waits for a processor, whatever socket it is for
	must(t, err)
	for line := range strings.Lines(string(processors)) {
		drops, err := strconv.ParseUint(strings.Fields(line)[1], 16, 32)
		must(t, err)
		n += int(drops)
	}
	return n
}

// droppedByUDP is how many datagrams the system has dropped so far because the buffer of a socket was full, whichever.
func droppedByUDP(t testing.TB) int {
	t.Helper()
	counters, err := os.ReadFile("/proc/net/snmp")
	must(t, err)
	var names []string
	for line := range strings.Lines(string(counters)) {
		columns := strings.Fields(line)
		switch i := slices.Index(names, "RcvbufErrors"); {
		case columns[0] != "Udp:":
		case i < 0:
			names = columns
		default:
			drops, err := strconv.Atoi(columns[i])
			must(t, err)
			return drops
		}
	}
	t.Fatalf("/proc/net/snmp has no RcvbufErrors:\n%s", counters)
	return 0
}
