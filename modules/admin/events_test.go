package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/events"
)

const waitFor = 30 * time.Second

// streamClient is the other end of a stream: what has arrived, and how to read no more for a while.
type streamClient struct {
	header http.Header

	mu          sync.Mutex
	text        strings.Builder
	flushed     int // bytes
	paused      chan struct{}
	noReadLimit bool
	failed      error
}

func newStreamClient() *streamClient { return &streamClient{header: make(http.Header)} }

func (c *streamClient) Header() http.Header { return c.header }
func (c *streamClient) WriteHeader(int)     {}

func (c *streamClient) Write(b []byte) (int, error) {
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if paused != nil {
		<-paused
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return 0, c.failed
	}
	return c.text.Write(b)
}

func (c *streamClient) FlushError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushed = c.text.Len()
	return nil
}

func (c *streamClient) SetWriteDeadline(time.Time) error { return nil }

func (c *streamClient) SetReadDeadline(at time.Time) error {
	c.noReadLimit = at.IsZero()
	return nil
}

// pause has the client read no more until resume.
func (c *streamClient) pause() (resume func()) {
	paused := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = paused
	return func() {
		c.mu.Lock()
		c.paused = nil
		c.mu.Unlock()
		close(paused)
	}
}

// sent is one event of a stream.
type sent struct{ event, id, data string }

func parseStream(text string) (all []sent) {
	for block := range strings.SplitSeq(text, "\n\n") {
		var one sent
		for line := range strings.Lines(block) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch name {
			case "event":
				one.event = value
			case "id":
				one.id = value
			case "data":
				one.data = value
			}
		}
		if one.event != "" {
			all = append(all, one)
		}
	}
	return all
}

// events returns those that have arrived and belong to a test, by a field that it gives its own.
func (c *streamClient) events(of string) (all []sent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range parseStream(c.text.String()[:c.flushed]) {
		if one.event == "status" || one.event == "lost" || strings.Contains(one.data, `"test":"`+of+`"`) {
			all = append(all, one)
		}
	}
	return all
}

// names are those of events, with the number that each has.
func names(all []sent) (names []string) {
	for _, one := range all {
		var data struct {
			N    int
			Lost int
		}
		_ = json.Unmarshal([]byte(one.data), &data)
		names = append(names, fmt.Sprint(one.event, " ", data.N+data.Lost))
	}
	return names
}

func emit(of string, n int) {
	events.Emit(events.Ban, events.Info, "a test", zap.String("test", of), zap.Int("n", n))
}

// open opens a stream. end ends it, and returns when it has ended.
func open(t *testing.T, query, lastID string, until <-chan struct{}) (c *streamClient, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, eventsPath+query, nil)
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	c, done := newStreamClient(), make(chan struct{})
	go func() {
		defer close(done)
		if err := serveEvents(c, r, until); err != nil {
			t.Error(err)
		}
	}()
	end = func() { cancel(); <-done }
	t.Cleanup(end)
	return c, end
}

// mustGet waits until the client has these events of a test.
func (c *streamClient) mustGet(t *testing.T, of string, want ...string) (all []sent) {
	t.Helper()
	for deadline := time.Now().Add(waitFor); ; time.Sleep(time.Millisecond) {
		if all = c.events(of); slices.Equal(names(all), want) {
			return all
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q, want %q", names(all), want)
		}
	}
}

// The last events come first, then those that happen, in order and each once. A client that comes again gets what it has missed.
func TestStreamOfEvents(t *testing.T) {
	t.Parallel()
	const of = "stream"
	emit(of, 1)
	emit(of, 2)
	c, end := open(t, "", "", nil)
	c.mustGet(t, of, "ban 1", "ban 2")
	if !c.noReadLimit || c.header.Get("Content-Type") != "text/event-stream" || c.header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(c.text.String(), "retry: 1000\n\n") {
		t.Errorf("%v, limit: %v", c.header, !c.noReadLimit)
	}
	emit(of, 3)
	all := c.mustGet(t, of, "ban 1", "ban 2", "ban 3")
	end()
	emit(of, 4)
	again, _ := open(t, "", all[1].id, nil)
	again.mustGet(t, of, "ban 3", "ban 4")
	other, _ := open(t, "", "00000000-2", nil) // of another process
	other.mustGet(t, of, "ban 1", "ban 2", "ban 3", "ban 4")
}

// A client that reads slowly holds up nobody, loses events, and is told how many.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	const of, many = "slow", 1000
	slow, end := open(t, "", "", nil)
	emit(of, 1)
	slow.mustGet(t, of, "ban 1")
	resume := slow.pause()
	for i := range many {
		emit(of, i+2)
	}
	quick, _ := open(t, "", "", nil)
	got := quick.events(of)
	for deadline := time.Now().Add(waitFor); len(got) == 0 || names(got)[len(got)-1] != fmt.Sprint("ban ", many+1); got = quick.events(of) {
		if time.Now().After(deadline) {
			t.Fatalf("a quick reader waits for a slow one: %d events", len(got))
		}
		time.Sleep(time.Millisecond)
	}
	if got[0].event == "lost" {
		t.Error("events are lost for a reader who has only come")
	}
	resume()
	emit(of, many+2)
	for deadline := time.Now().Add(waitFor); ; time.Sleep(time.Millisecond) {
		got = slow.events(of)
		if last := names(got)[len(got)-1]; last == fmt.Sprint("ban ", many+2) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events", len(got))
		}
	}
	end()
	lost, came := 0, 0
	for _, one := range got {
		var data struct{ Lost int }
		_ = json.Unmarshal([]byte(one.data), &data)
		if one.event == "lost" {
			lost += data.Lost
			continue
		}
		came++
	}
	if lost == 0 || came+lost < many+2 { // other tests have events, too
		t.Errorf("%d events and %d lost, of %d", came, lost, many+2)
	}
}

// ?status= adds the status, which is made once for all streams.
func TestStreamOfStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		nothing := func(uint64) (some []*events.Event, lost, last uint64, more <-chan struct{}) { return }
		open := func(every time.Duration) *streamClient {
			c := newStreamClient()
			s := &stream{w: c, control: http.NewResponseController(c), since: nothing, every: every}
			go func() { _ = s.serve(ctx, nil) }()
			return c
		}
		var all []*streamClient
		for range 10 {
			all = append(all, open(time.Second))
		}
		every := open(10 * time.Second)
		time.Sleep(30*time.Second + time.Millisecond)
		synctest.Wait()
		made := make(map[string]struct{})
		for _, c := range all {
			n := 0
			for _, one := range c.events("status") {
				if one.event != "status" {
					continue
				}
				n++
				made[one.data] = struct{}{}
				if !json.Valid([]byte(one.data)) || !strings.Contains(one.data, `"uptime":`) || one.id != "" {
					t.Fatalf("%+v", one)
				}
			}
			if n != 31 {
				t.Errorf("%d in 30 seconds", n)
			}
		}
		if len(made) != 31 {
			t.Errorf("made %d times for 10 streams", len(made))
		}
		n := 0
		for _, one := range every.events("status") {
			if one.event == "status" {
				n++
			}
		}
		if n != 4 {
			t.Errorf("%d every 10 seconds", n)
		}
		if !strings.Contains(all[0].text.String(), "\n:\n\n") {
			t.Error("a stream does not say that it is alive")
		}
	})
}

func TestStreamIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, query string
		status        int
		want          string
	}{
		{"POST", "", 405, "method POST: expected GET"},
		{"GET", "?status=500ms", 400, `status: "500ms": expected a duration from 1s to 1h`},
		{"GET", "?status=2h", 400, `status: "2h": expected a duration from 1s to 1h`},
		{"GET", "?status=", 400, `status: "": expected a duration from 1s to 1h`},
		{"GET", "?state=1s", 400, `unknown parameter "state": expected one of status`},
		{"GET", "?%zz", 400, `query: "%zz": invalid URL escape "%zz"`},
	} {
		err := serveEvents(newStreamClient(), httptest.NewRequest(c.method, eventsPath+c.query, nil), nil)
		var refused caddy.APIError
		if !errors.As(err, &refused) || refused.HTTPStatus != c.status || refused.Err.Error() != c.want {
			t.Errorf("%s %s: %v, want %s", c.method, c.query, err, c.want)
		}
	}
}

// However many streams somebody opens, there is a bound, and room for others when they have gone.
func TestStreamsAreBounded(t *testing.T) {
	streamsNow.Add(maxStreams)
	err := serveEvents(newStreamClient(), httptest.NewRequest(http.MethodGet, eventsPath, nil), nil)
	var refused caddy.APIError
	if !errors.As(err, &refused) || refused.HTTPStatus != http.StatusServiceUnavailable {
		t.Errorf("%v", err)
	}
	if n := streamsNow.Add(-maxStreams); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// A stream ends when another endpoint takes the place of its own, because Caddy waits for it, and has sent then what there was. One that begins
// later ends soon.
func TestStreamEndsWithItsEndpoint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all newest
		config := func() (context.Context, context.CancelCauseFunc) {
			return context.WithCancelCause(context.Background())
		}
		ended := func(until <-chan struct{}) bool {
			synctest.Wait()
			select {
			case <-until:
				return true
			default:
				return false
			}
		}
		runs, stop := config()
		first := all.add(runs)
		before := first.until()
		if ended(before) {
			t.Error("ended at once")
		}
		rejected, reject := config()
		second := all.add(rejected)
		if !ended(before) {
			t.Error("goes on where the endpoint has another one in its place")
		}
		late := first.until()
		if ended(late) {
			t.Error("a late one ends at once: the endpoint may be the only one, if the other could not listen")
		}
		time.Sleep(lateFor)
		if !ended(late) {
			t.Error("a late one goes on")
		}
		reject(fmt.Errorf("configuration error: %w", errors.New("no upstream")))
		if serves := second.until(); ended(serves) { // Caddy leaves it where it is
			t.Error("nobody gets events after a config was rejected")
		}
		serves := second.until()
		stop(errors.New("stopping apps"))
		if !ended(serves) {
			t.Error("goes on when nothing runs any more")
		}
	})
}
