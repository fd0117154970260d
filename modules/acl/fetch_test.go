package acl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/portgate/caddy-portgate/modules/internal/fetch"
)

// pipes is a network without a system: what waits for it waits in the time of a bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	}
}

// inBubble calls f with a client whose server answers in this way, in the time of a bubble.
func inBubble(t *testing.T, answer http.HandlerFunc, f func(t *testing.T, client *http.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		network := &pipes{make(chan net.Conn), make(chan struct{})}
		server := &http.Server{Handler: answer}
		go func() { _ = server.Serve(network) }()
		client := fetch.NewClient()
		transport := client.Transport.(interface{ Unwrap() *http.Transport }).Unwrap()
		transport.DialContext, transport.Proxy = network.dial, nil
		f(t, client)
		must(t, server.Close())
		time.Sleep(time.Hour) // until what it was about to send is sent
	})
}

const feedURL = "http://feeds.example/list"

// openFeed opens a feed, and waits for its content.
func openFeed(key sourceKey, storage certmagic.Storage, client *http.Client) (*feed, error) {
	f := newFeed(key, storage, client)
	f.begin()
	err := f.await()
	if err != nil {
		err = errors.Join(err, f.Destruct())
	}
	return f, err
}

// run opens a feed and closes it when f returns.
func run(t *testing.T, key sourceKey, storage certmagic.Storage, client *http.Client, f func(*feed)) {
	t.Helper()
	feed, err := openFeed(key, storage, client)
	must(t, err)
	f(feed)
	must(t, feed.Destruct())
}

// steadily sends a list of so many bytes in so much time, at the same rate throughout.
func steadily(size int, takes time.Duration) http.HandlerFunc {
	const steps = 100
	line := one + " #" + strings.Repeat("x", 1000) + "\n"
	return func(w http.ResponseWriter, _ *http.Request) {
		for range steps {
			if _, err := io.WriteString(w, strings.Repeat(line, size/steps/len(line)+1)); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(takes / steps)
		}
		fmt.Fprintln(w, two)
	}
}

// A list that comes slowly is taken as long as it comes, when a config is loaded and later.
func TestFeedThatIsSlow(t *testing.T) {
	t.Parallel()
	var takes atomic.Int64
	takes.Store(int64(14 * time.Second))
	answer := func(w http.ResponseWriter, r *http.Request) { steadily(5<<20, time.Duration(takes.Load()))(w, r) }
	inBubble(t, answer, func(t *testing.T, client *http.Client) {
		run(t, feedKey(feedURL, time.Hour), store(t), client, func(f *feed) {
			if !f.contains(addr(two)) {
				t.Error("the list is not loaded")
			}
			first := f.set.Load()
			takes.Store(int64(5 * time.Minute))
			time.Sleep(2 * time.Hour)
			if failed := f.condition().Error; f.set.Load() == first || failed != "" {
				t.Errorf("the list was not loaded again: %s", failed)
			}
		})
	})
}

// A server that is silent, or that never comes to an end, holds up the load of a config for a bounded time.
func TestFeedThatIsSilent(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	stop := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, one)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	trickle := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, "#\n"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(time.Second)
		}
	}
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		timeout time.Duration
		after   time.Duration
		want    string
	}{
		"no answer":          {hang, defaultTimeout, firstTimeout, "the server sent nothing for 10s"},
		"no answer, 2s":      {hang, 2 * time.Second, 2 * time.Second, "the server sent nothing for 2s"},
		"no further bytes":   {stop, defaultTimeout, firstTimeout, "the server sent nothing for 10s"},
		"no end":             {trickle, defaultTimeout, firstLimit, "the server took more than 30s to send the list"},
		"no end, 2s silence": {trickle, 2 * time.Second, firstLimit, "the server took more than 30s to send the list"},
	} {
		inBubble(t, c.answer, func(t *testing.T, client *http.Client) {
			key := feedKey(feedURL, time.Hour)
			key.timeout = c.timeout
			start := time.Now()
			_, err := openFeed(key, store(t), client)
			if took := time.Since(start); err == nil || err.Error() != c.want || took != c.after {
				t.Errorf("%s: %v after %v, want %s after %v", name, err, took, c.want, c.after)
			}
		})
	}
	var first atomic.Bool
	var took atomic.Int64
	answer := func(w http.ResponseWriter, r *http.Request) {
		if !first.Swap(true) {
			fmt.Fprintln(w, one)
			return
		}
		start := time.Now()
		trickle(w, r)
		took.CompareAndSwap(0, int64(time.Since(start)))
	}
	inBubble(t, answer, func(t *testing.T, client *http.Client) {
		run(t, feedKey(feedURL, time.Hour), store(t), client, func(f *feed) {
			time.Sleep(90 * time.Minute)
			if failed := f.condition().Error; failed != "the server took more than 10m0s to send the list" || !f.contains(addr(one)) {
				t.Error(failed)
			}
		})
		if got := time.Duration(took.Load()); got < fetchLimit-time.Second || got > fetchLimit+2*time.Second {
			t.Errorf("ended after %v, want %v", got, fetchLimit)
		}
	})
}

// asks notes when a server was asked.
type asks struct {
	mu    sync.Mutex
	times []time.Time
}

func (a *asks) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.times)
}

// by notes each request, and has all but the first answered in this way.
func (a *asks) by(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.times = append(a.times, time.Now())
		n := len(a.times)
		a.mu.Unlock()
		if n == 1 {
			w.Header().Set("ETag", `"v1"`)
			fmt.Fprintln(w, one)
			return
		}
		answer(w, r)
	}
}

// A server that is asked too often is left alone for as long as it wants, within bounds.
func TestFeedObeysRetryAfter(t *testing.T) {
	t.Parallel()
	const interval = 10 * time.Minute
	for name, c := range map[string]struct {
		status int
		value  func() string
		want   time.Duration
	}{
		"429, an hour":       {429, func() string { return "3600" }, time.Hour},
		"503, an hour":       {503, func() string { return "3600" }, time.Hour},
		"429, a date":        {429, func() string { return time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) }, time.Hour},
		"429, for ever":      {429, func() string { return "18446744073709551615" }, maxRetryAfter},
		"429, a far date":    {429, func() string { return "Sun, 01 Jan 9999 00:00:00 GMT" }, maxRetryAfter},
		"429, nothing":       {429, func() string { return "" }, interval},
		"429, a past date":   {429, func() string { return "Sun, 06 Nov 1994 08:49:37 GMT" }, interval},
		"503, nothing":       {503, func() string { return "" }, firstRetry},
		"503, soon":          {503, func() string { return "1" }, firstRetry},
		"503, nonsense":      {503, func() string { return "-5" }, firstRetry},
		"500 says nothing":   {500, func() string { return "3600" }, firstRetry},
		"404 says something": {404, func() string { return "3600" }, firstRetry},
	} {
		var a asks
		answer := a.by(func(w http.ResponseWriter, _ *http.Request) {
			if value := c.value(); value != "" {
				w.Header().Set("Retry-After", value)
			}
			w.WriteHeader(c.status)
		})
		inBubble(t, answer, func(t *testing.T, client *http.Client) {
			run(t, feedKey(feedURL, interval), store(t), client, func(f *feed) {
				for a.count() < 3 {
					time.Sleep(c.want / 4)
				}
			})
		})
		got := a.times[2].Sub(a.times[1])
		least := c.want
		if c.want == firstRetry {
			least = time.Duration(float64(firstRetry) * (1 - jitter))
		} else if strings.Contains(name, "date") {
			least -= time.Second // dates have no parts of seconds
		}
		if got < least || float64(got) > float64(c.want)*(1+jitter)+1e9 {
			t.Errorf("%s: asked again after %v, want %v", name, got, c.want)
		}
	}
}

// A restart does not ask the server before the interval, or what the server has asked for, is over.
func TestFeedAfterARestart(t *testing.T) {
	t.Parallel()
	const interval = 24 * time.Hour
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		run      time.Duration // how long the first one runs
		requests int           // in that time
		soonest  time.Duration // the next one, from then on
	}{
		"just fetched":        {status(500), time.Second, 1, 19 * time.Hour},
		"fetched long before": {status(500), 12 * time.Hour, 1, 7 * time.Hour},
		"found unchanged": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") != `"v1"` {
				t.Error("asked without a condition")
			}
			w.WriteHeader(http.StatusNotModified)
		}, 30 * time.Hour, 2, 8 * time.Hour},
		"left alone": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", strconv.Itoa(int(23*time.Hour/time.Second)))
			w.WriteHeader(http.StatusTooManyRequests)
		}, 29 * time.Hour, 2, 13 * time.Hour},
	} {
		var a asks
		storage := store(t)
		inBubble(t, a.by(c.answer), func(t *testing.T, client *http.Client) {
			run(t, feedKey(feedURL, interval), storage, client, func(*feed) { time.Sleep(c.run) })
			if n := a.count(); n != c.requests {
				t.Errorf("%s: asked %d times, want %d", name, n, c.requests)
			}
			for range 6 {
				run(t, feedKey(feedURL, interval), storage, client, func(f *feed) {
					time.Sleep(time.Second)
					if !f.contains(addr(one)) {
						t.Errorf("%s: the copy is not in use", name)
					}
				})
			}
			run(t, feedKey(feedURL, interval), storage, client, func(*feed) {
				time.Sleep(c.soonest - 10*time.Second)
				if n := a.count(); n != c.requests {
					t.Errorf("%s: asked %d times after restarts, want %d", name, n, c.requests)
				}
				time.Sleep(interval + interval/4)
				if n := a.count(); n == c.requests {
					t.Errorf("%s: never asked again", name)
				}
			})
		})
	}
}

// A copy from the time to come, which a clock that was wrong has written, is asked for after the interval.
func TestFeedCopyFromTheFuture(t *testing.T) {
	t.Parallel()
	f := &feed{interval: time.Hour}
	for range 100 {
		if wait := f.due(feedNote{Checked: time.Now().Add(1000 * time.Hour)}); wait > 72*time.Minute || wait < 48*time.Minute {
			t.Errorf("due in %v", wait)
		}
		if wait := f.due(feedNote{NotBefore: time.Now().Add(1000 * time.Hour)}); wait > maxRetryAfter {
			t.Errorf("due in %v", wait)
		}
		if wait := f.due(feedNote{Checked: time.Now().Add(-1000 * time.Hour)}); wait != 0 {
			t.Errorf("due in %v", wait)
		}
	}
}
