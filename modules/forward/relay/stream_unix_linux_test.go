package relay

import (
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func overUnix(t *testing.T, test func(*testing.T, pair)) {
	for _, p := range pairs {
		if p.unix {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				test(t, p)
			})
		}
	}
}

// Descriptors are not passed on, but what comes with them and after them is: a read stops in between,
// although there is more.
func TestUpstreamPassesDescriptors(t *testing.T) {
	overUnix(t, func(t *testing.T, p pair) {
		s := p.open(t)
		rights := unix.UnixRights(int(os.Stdin.Fd()))
		for _, n := range []int{10, 1000, 200_000, 10} {
			for range 5 {
				var writer sync.WaitGroup
				writer.Go(func() {
					for sent := bytesOf(1, 3*n); len(sent) > 0; {
						m, _, err := s.upstream.(*net.UnixConn).WriteMsgUnix(sent[:min(n, len(sent))], rights, nil)
						if err != nil {
							t.Error(err)
							return
						}
						sent = sent[m:]
					}
				})
				s.mustReceive(s.client, 1, int64(3*n))
				writer.Wait()
			}
		}
	})
}

// An upstream sees the name that the tracker has given, from the first attempt to the last. It sees none where there is none, or where it is
// taken.
func TestNameOfAUnixSocket(t *testing.T) {
	overUnix(t, func(t *testing.T, p pair) {
		name := "@portgate-test-" + rand.Text()
		taken, err := net.Listen("unix", name+"-taken")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		refuses := &net.UnixAddr{Net: "unix", Name: "/nonexistent/s"}
		for _, test := range []struct {
			names []string
			want  string
		}{
			{[]string{name + "-first", name + "-second"}, name + "-second"},
			{[]string{name + "-first", taken.Addr().String()}, "@"},
			{nil, "@"},
		} {
			track := newSockets(t)
			track.names = test.names
			ln := p.listen(t)
			s := p.start(t, only(refuses, ln.Addr()), func(c *Config) { c.Track = track })
			s.acceptFrom(ln)
			s.exchange(10)
			if got := s.upstream.RemoteAddr().String(); got != test.want {
				t.Errorf("the upstream's client is %q, want %q", got, test.want)
			}
			s.client.Close()
			s.upstream.Close()
			s.result()
			if n := track.count(); n != 0 {
				t.Errorf("%d sockets were not closed at the end", n)
			}
		}
	})
}

// The upstream may be too busy to accept; its queue has room again soon.
func TestUnixUpstreamWithAFullQueue(t *testing.T) {
	overUnix(t, func(t *testing.T, p pair) {
		addr := &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")}
		ln, waiting := listenFull(t, addr)
		s := p.start(t, only(addr))
		select {
		case r := <-s.ended:
			t.Fatalf("did not wait: %v", r.Err)
		case <-time.After(200 * time.Millisecond):
		}
		accept(t, ln, waiting)
		s.acceptFrom(ln)
		s.exchange(10)
	})
}

func TestUnixUpstreamWhoseQueueStaysFull(t *testing.T) {
	overUnix(t, func(t *testing.T, p pair) {
		addr := &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")}
		listenFull(t, addr)
		s := p.start(t, only(addr), limits(Limits{Connect: 100 * time.Millisecond}))
		if r := s.want(ConnectTimeout); !errors.Is(r.Err, unix.EAGAIN) {
			t.Errorf("error: %v", r.Err)
		}
	})
}

// listenFull opens a listener whose queue is full, with so many connections.
func listenFull(t testing.TB, addr *net.UnixAddr) (ln net.Listener, waiting int) {
	t.Helper()
	ln = listenWithoutQueue(t, &unix.SockaddrUnix{Name: addr.Name})
	for {
		conn, err := net.DialUnix("unix", nil, addr)
		if errors.Is(err, unix.EAGAIN) {
			return ln, waiting
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		waiting++
	}
}
