package contract

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// BenchmarkSessionsListed exchanges messages of 64 bytes while 10,000 other sessions are listed, beside the same while nobody asks, in turn: what
// else the machine does falls on both alike. Lists follow each other without a pause. The sessions that are listed are real but for their sockets.
func BenchmarkSessionsListed(b *testing.B) {
	const sessions, busy, window = 10_000, 16, 500 * time.Millisecond
	b.Run("10000", func(b *testing.B) {
		addr := exchanging(b)
		manySessions(b, sessions)
		list := sessionsHandler(b)
		var listing, over atomic.Bool
		latencies := [2][]time.Duration{} // quiet, listing
		var mu sync.Mutex
		var clients sync.WaitGroup
		for range busy {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			clients.Go(func() {
				defer conn.Close()
				mine := exchangeUntil(b, conn, &over, &listing)
				mu.Lock()
				defer mu.Unlock()
				for i := range latencies {
					latencies[i] = append(latencies[i], mine[i]...)
				}
			})
		}
		lists := 0
		for b.Loop() {
			listing.Store(false)
			time.Sleep(window)
			listing.Store(true)
			for until := time.Now().Add(window); time.Now().Before(until); lists++ {
				w := &counting{header: make(http.Header)}
				if err := list.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/portgate/sessions", nil)); err != nil || w.n < 100*sessions {
					b.Fatalf("%d bytes: %v", w.n, err)
				}
			}
		}
		over.Store(true)
		clients.Wait()
		p99 := [2]float64{}
		for i, all := range latencies {
			slices.Sort(all)
			p99[i] = float64(all[len(all)*99/100].Microseconds())
		}
		b.ReportMetric(p99[0], "µs-p99-quiet")
		b.ReportMetric(p99[1], "µs-p99-listing")
		b.ReportMetric(p99[1]/p99[0], "times")
		b.ReportMetric(float64(lists)/float64(b.N)/window.Seconds(), "lists/s")
	})
}

// counting is a client that reads at once.
type counting struct {
	header http.Header
	n      int
}

func (c *counting) Header() http.Header { return c.header }
func (c *counting) WriteHeader(int)     {}

func (c *counting) Write(b []byte) (int, error) {
	c.n += len(b)
	return len(b), nil
}

// exchanging loads a config that forwards to an echo, and returns its address.
func exchanging(b *testing.B) (addr string) {
	b.Helper()
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { upstream.Close() })
	go func() {
		for {
			conn, err := upstream.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(struct{ io.Writer }{conn}, conn)
			}()
		}
	}()
	addr = newHost() + ":20000"
	servers := object{"one": object{"listen": []string{"gate+tcp/" + addr}, "routes": []object{{"handle": []object{forwardTo(upstream.Addr().String())}}}}}
	if err := caddy.Load(configOf(b, servers), true); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = caddy.Stop() })
	return addr
}

// still moves nothing any more.
type still struct{ since time.Time }

func (s still) Close(string)            {}
func (s still) LastActive() time.Time   { return s.since }
func (s still) Moved() (up, down int64) { return 1000, 2000 }

// manySessions begins sessions that last until the benchmark is over.
func manySessions(b *testing.B, n int) {
	b.Helper()
	ctx, unload := caddy.NewContext(caddy.ActiveContext())
	b.Cleanup(unload)
	scope, err := session.NewScope(ctx, 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		a := session.Arrival{
			Network: "tcp", Listener: "127.0.0.1:1", Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1000),
			Since: time.Now().Add(-time.Hour),
		}
		s := a.Begin(scope)
		s.SetMover(still{a.Since})
		s.SetUpstream("10.0.0.1:1", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, nil)
		s.Dialed(time.Millisecond)
		b.Cleanup(func() { s.End(session.End{Status: session.StatusDone}) })
	}
}

func sessionsHandler(b *testing.B) caddy.AdminHandler {
	b.Helper()
	info, err := caddy.GetModule("admin.api.portgate_sessions")
	if err != nil {
		b.Fatal(err)
	}
	return info.New().(caddy.AdminRouter).Routes()[0].Handler
}

// exchangeUntil returns what exchanges took: of those that began and ended while nobody listed, and of those while somebody did.
func exchangeUntil(b *testing.B, conn net.Conn, over, listing *atomic.Bool) (latencies [2][]time.Duration) {
	message := make([]byte, 64)
	for !over.Load() {
		while, start := listing.Load(), time.Now()
		_, err := conn.Write(message)
		if err == nil {
			_, err = io.ReadFull(conn, message)
		}
		if err != nil {
			b.Error(fmt.Errorf("exchange: %w", err))
			return latencies
		}
		if took := time.Since(start); listing.Load() == while {
			i := 0
			if while {
				i = 1
			}
			latencies[i] = append(latencies[i], took)
		}
	}
	return latencies
}
