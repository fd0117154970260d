package acl

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/goleak"
)

// publisher is a server of one list.
type publisher struct {
	*httptest.Server
	mu      sync.Mutex
	answer  http.HandlerFunc
	asked   atomic.Int64
	request http.Header // of the last request
}

func publish(t testing.TB, answer http.HandlerFunc) *publisher {
	t.Helper()
	p := &publisher{answer: answer}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		answer := p.answer
		p.request = r.Header
		p.mu.Unlock()
		answer(w, r)
		p.asked.Add(1)
	}))
	t.Cleanup(p.Close)
	return p
}

// change has the next requests answered in another way, and returns when one was.
func (p *publisher) change(t testing.TB, answer http.HandlerFunc) {
	t.Helper()
	p.mu.Lock()
	p.answer = answer
	p.mu.Unlock()
	before := p.asked.Load()
	eventually(t, "a request", func() bool { return p.asked.Load() > before+1 })
}

func textAnswer(content string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, content) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, one, code) }
}

// follow loads a feed for the rest of the test.
func follow(t testing.TB, location string, interval time.Duration, storage certmagic.Storage) *feed {
	t.Helper()
	f, err := openFeed(feedKey(location, interval), storage, feedClient)
	must(t, err)
	t.Cleanup(func() { must(t, f.Destruct()) })
	return f
}

func feedKey(location string, interval time.Duration) sourceKey {
	return sourceKey{kind: "url", location: location, interval: interval, timeout: defaultTimeout}
}

func store(t testing.TB) certmagic.Storage { return &certmagic.FileStorage{Path: t.TempDir()} }

const often = 10 * time.Millisecond

func TestFeedIsFollowed(t *testing.T) {
	t.Parallel()
	p := publish(t, textAnswer(one))
	f := follow(t, p.URL, often, store(t))
	if !f.contains(addr(one)) {
		t.Error("the list is not loaded")
	}
	p.change(t, textAnswer(two))
	eventually(t, "the new list", func() bool { return f.contains(addr(two)) && !f.contains(addr(one)) })
}

// What has not changed is not sent again.
func TestFeedIsAskedConditionally(t *testing.T) {
	t.Parallel()
	p := publish(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") == `"v1"` && r.Header.Get("If-Modified-Since") == "yesterday" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Last-Modified", "yesterday")
		fmt.Fprint(w, one)
	})
	storage := store(t)
	f := follow(t, p.URL, often, storage)
	set := f.set.Load()
	eventually(t, "requests", func() bool { return p.asked.Load() > 3 })
	if f.set.Load() != set {
		t.Error("the list was loaded again though it has not changed")
	}
	// The one that starts with the stored copy asks in the same way.
	again := follow(t, p.URL, often, storage)
	set = again.set.Load()
	before := p.asked.Load()
	eventually(t, "requests", func() bool { return p.asked.Load() > before+5 })
	if again.set.Load() != set {
		t.Error("the stored list was loaded again though it has not changed")
	}
}

// Whatever is wrong with an answer, the last good list stays.
func TestFeedKeepsItsLastGoodContent(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"500":       status(500),
		"404":       status(404),
		"204":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"nothing":   textAnswer(""),
		"HTML":      textAnswer("<html>\n<body>\nSign in\n</body>\n</html>"),
		"too large": func(w http.ResponseWriter, _ *http.Request) { endless(w) },
		"too large when unpacked": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			packer := gzip.NewWriter(w)
			endless(packer)
			_ = packer.Close()
		},
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, two)
		},
		"redirected for ever": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) },
		"hung up":             func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := publish(t, textAnswer(one))
			f := follow(t, p.URL, often, store(t))
			p.mu.Lock()
			p.answer = answer
			p.mu.Unlock()
			eventually(t, "the failure", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.failed != ""
			})
			if !f.contains(addr(one)) || f.contains(addr(two)) {
				t.Error("the last good content is not in use")
			}
		})
	}
}

// endless writes good lines for as long as somebody takes them.
func endless(w interface{ Write([]byte) (int, error) }) {
	block := []byte(strings.Repeat("192.0.2.2#"+strings.Repeat("x", 4000)+"\n", 25))
	for range 1000 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// A restart without the server of the list starts with the last good copy, however old it is.
func TestFeedStartsWithoutItsServer(t *testing.T) {
	t.Parallel()
	p := publish(t, textAnswer(one))
	storage := store(t)
	follow(t, p.URL, time.Hour, storage)
	p.Close()
	again := follow(t, p.URL, often, storage)
	if !again.contains(addr(one)) {
		t.Error("the last good copy is not in use")
	}
	eventually(t, "the failure", func() bool {
		again.mu.Lock()
		defer again.mu.Unlock()
		return again.failed != ""
	})
}

// At first load a failure is fatal, and says nothing of what may be secret in the URL.
func TestFeedThatCanNotBeLoaded(t *testing.T) {
	t.Parallel()
	p := publish(t, status(503))
	_, err := openFeed(feedKey(p.URL, time.Hour), store(t), feedClient)
	if want := "the server answered 503 Service Unavailable, expected 200 OK"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	p.Close()
	_, err = openFeed(feedKey(strings.Replace(p.URL, "://", "://user:secret@", 1)+"?key=secret", time.Hour), store(t), feedClient)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v, want an error without the secret", err)
	}
}

// A stored copy that is damaged is not used.
func TestFeedWithDamagedCopy(t *testing.T) {
	t.Parallel()
	p := publish(t, textAnswer(one))
	storage := store(t)
	key := (&feed{url: p.URL}).key()
	for _, damaged := range []string{"", "x\n" + two, "{}\nnonsense\n"} {
		must(t, storage.Store(t.Context(), key, []byte(damaged)))
		f := follow(t, p.URL, time.Hour, storage)
		if !f.contains(addr(one)) || f.contains(addr(two)) {
			t.Errorf("%q was used", damaged)
		}
	}
}

// brokenStorage is a disk that is full.
type brokenStorage struct{ certmagic.Storage }

func (brokenStorage) Load(context.Context, string) ([]byte, error) { return nil, fs.ErrNotExist }
func (brokenStorage) Store(context.Context, string, []byte) error  { return errors.New("disk full") }

func (brokenStorage) List(context.Context, string, bool) ([]string, error) {
	return nil, fs.ErrNotExist
}

// A list that can't be stored is in force all the same.
func TestFeedThatCanNotBeStored(t *testing.T) {
	t.Parallel()
	p := publish(t, textAnswer(one))
	if f := follow(t, p.URL, time.Hour, brokenStorage{}); !f.contains(addr(one)) {
		t.Error("the list is not in use")
	}
}

// The pauses grow with the failures, stay below the interval, and differ from each other.
func TestFeedPauses(t *testing.T) {
	t.Parallel()
	f := &feed{interval: time.Hour}
	for failures, want := range map[int]time.Duration{
		0: time.Hour, 1: firstRetry, 2: 2 * firstRetry, 5: 16 * firstRetry, 11: time.Hour, 1000: time.Hour,
	} {
		different := make(map[time.Duration]bool)
		for range 100 {
			got := f.pause(failures)
			different[got] = true
			if low, high := float64(want)*(1-jitter), float64(want)*(1+jitter); float64(got) < low || float64(got) > high {
				t.Errorf("%d failures: %v, want about %v", failures, got, want)
			}
		}
		if len(different) < 50 {
			t.Errorf("%d failures: only %d different pauses", failures, len(different))
		}
	}
	f.interval = time.Second
	if got := f.pause(3); got > 2*time.Second {
		t.Errorf("a pause of %v with an interval of a second", got)
	}
}

// A feed whose server does not answer ends at once when nobody needs it any more.
func TestFeedEndsWhileItWaits(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	asked := make(chan struct{})
	var first atomic.Bool
	stop := make(chan struct{})
	p := publish(t, func(w http.ResponseWriter, r *http.Request) {
		if first.CompareAndSwap(false, true) {
			fmt.Fprint(w, one)
			return
		}
		close(asked)
		<-stop
	})
	f, err := openFeed(feedKey(p.URL, often), store(t), feedClient)
	must(t, err)
	<-asked
	start := time.Now()
	must(t, f.Destruct())
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	close(stop)
	p.Close()
}
