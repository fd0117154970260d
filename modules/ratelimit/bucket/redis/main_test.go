package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/goleak"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// The client of a cluster closes a node that has left it five seconds later. Any client that was closed still wants to ask, up to a second
// later, what has become of the cluster, and finds that it is closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"))
}

// server is a real redis-server.
type server struct {
	t    testing.TB
	args []string
	env  []string // beside that of the test
	url  string
	cmd  *exec.Cmd
}

func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	s := newServer(t, args...)
	s.start()
	return s
}

// newServer returns a server, yet to be started, on a unix socket, which no other process can have taken.
func newServer(t testing.TB, args ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	args = append([]string{
		"--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--appendonly", "no",
		"--enable-debug-command", "yes", "--logfile", filepath.Join(dir, "log"),
	}, args...)
	s := &server{t: t, args: args, url: "unix://" + socket}
	t.Cleanup(s.kill)
	return s
}

// launch does not wait until it serves.
func (s *server) launch() {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", s.args...)
	s.cmd.Env = append(os.Environ(), s.env...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) start() {
	s.t.Helper()
	s.launch()
	eventually(s.t, func() error {
		_, err := s.tryDo("PING")
		return err
	})
}

// kill is kill -9, of a server that may be stopped.
func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *server) signal(sig syscall.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) tryDo(args ...string) (rueidis.RedisMessage, error) {
	options, err := Parse(s.url)
	if err != nil {
		return rueidis.RedisMessage{}, err
	}
	options.ForceSingleClient = true
	client, err := rueidis.NewClient(options)
	if err != nil {
		return rueidis.RedisMessage{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return client.Do(ctx, client.B().Arbitrary(args...).Build()).ToMessage()
}

func (s *server) do(args ...string) rueidis.RedisMessage {
	s.t.Helper()
	answer, err := s.tryDo(args...)
	if err != nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return answer
}

// strings returns a list of strings.
func (s *server) strings(args ...string) []string {
	s.t.Helper()
	answer := s.do(args...)
	list, err := answer.AsStrSlice()
	if err != nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return list
}

// calls returns how often each command was called since the statistics were reset.
func (s *server) calls() map[string]int {
	s.t.Helper()
	answer := s.do("INFO", "commandstats")
	text, err := answer.ToString()
	if err != nil {
		s.t.Fatal(err)
	}
	calls := make(map[string]int)
	for line := range strings.Lines(text) {
		name, rest, found := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if n := 0; found {
			_, _ = fmt.Sscanf(rest, "%d", &n)
			calls[name] = n
		}
	}
	return calls
}

// patient is longer than any answer takes on a busy machine.
const patient = 5 * time.Second

// open returns a store that is connected.
func open(t testing.TB, s *server, change ...func(*Options)) *Store {
	t.Helper()
	options := Options{URL: s.url, Timeout: patient, Prefix: "test:", Name: "limits", OnError: Local}
	for _, c := range change {
		c(&options)
	}
	store, err := New(options, bucket.NewMemory(1000))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	eventually(t, store.connected)
	return store
}

func (s *Store) connected() error {
	if s.Open() {
		return errors.New("the breaker is open")
	}
	return nil
}

func (s *Store) disconnected() error {
	if !s.Open() {
		return errors.New("the breaker is closed")
	}
	return nil
}

// late is what a busy machine may add to a time. What is never done takes a minute and more.
const late = 10 * time.Second

// eventually waits until there is no error any more.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(2 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

var epoch = time.Now()

func now() time.Duration { return time.Since(epoch) }

func hourly(t testing.TB, id uint16, burst int64) *bucket.Limit {
	t.Helper()
	l, err := bucket.NewEvents(id, 1, time.Hour, burst, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func text(l *bucket.Limit, key string) []bucket.Request {
	return []bucket.Request{{Limit: l, Key: l.ForText(key)}}
}

// admitted returns how many of n decisions admit.
func (s *Store) admitted(n int, requests []bucket.Request) (admitted int) {
	for range n {
		if d := s.Decide(now(), requests); !d.Refused {
			admitted++
		}
	}
	return admitted
}
