package acl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/fetch"
)

const (
	// defaultInterval is how often a feed is asked, unless the config says otherwise.
	defaultInterval = time.Hour
	// minInterval keeps a mistake from becoming an attack on who publishes the feed.
	minInterval = time.Second
	// firstRetry is the pause after a failure; it doubles with each further one, up to the interval.
	firstRetry = 5 * time.Second
	// jitter is the part of a pause that is left to chance, so that many gateways don't ask at the same moment.
	jitter        = 0.2
	maxRetryAfter = fetch.MaxRetryAfter
	// minNoted is the interval from which it is stored when a feed was found unchanged. With a shorter one, it does no harm
	// to ask again after a restart.
	minNoted = time.Minute
)

// feed is a source that is fetched from a URL again and again.
type feed struct {
	list
	url      string
	interval time.Duration
	timeout  time.Duration // of silence
	hostBits ipset.HostBits
	storage  storages
	client   *http.Client

	stop    context.CancelFunc
	ready   chan struct{} // closed when there is a content, or failure
	failure error
	done    chan struct{}

	uncopied *degraded.Part

	have feedCopy // belongs to the goroutine
}

// feedCopy is what the storage has of a feed, followed by the list itself. The first two come from the server and go back
// to it, so that it needs to send only what has changed.
type feedCopy struct {
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"last_modified,omitempty"`
	Fetched      time.Time `json:"fetched"`
	URL          string    `json:"url"`
}

// feedNote is what the storage has beside a copy that has not changed.
type feedNote struct {
	Checked   time.Time `json:"checked,omitzero"`    // the server still had it then
	NotBefore time.Time `json:"not_before,omitzero"` // the server asked to be left alone until then
}

// newFeed returns a feed that has not begun.
func newFeed(key sourceKey, storage certmagic.Storage, client *http.Client) *feed {
	f := &feed{
		url: key.location, interval: key.interval, timeout: key.timeout, hostBits: key.hostBits(), client: client,
		ready: make(chan struct{}), done: make(chan struct{}), uncopied: degraded.New("list_copy"),
	}
	f.init(key.name())
	f.storage.Use(storage)
	return f
}

// begin begins with the last good copy, or else with what the server sends now, and then follows the feed. Callers await that
// it has a content.
func (f *feed) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	removeLeftovers(f.storage.Value(), feedsFolder)
	wait, restored := f.restore(ctx)
	if restored {
		f.opened()
		close(f.ready)
	}
	go func() {
		defer close(f.done)
		if !restored {
			if f.failure = f.fetch(ctx, min(f.timeout, firstTimeout), firstLimit); f.failure == nil {
				f.opened()
			}
			close(f.ready)
			wait = withJitter(f.interval)
		}
		if f.failure == nil {
			f.follow(ctx, wait)
		}
	}()
}

// await returns when the list has its first content, or the reason why it has none.
func (f *feed) await() error {
	<-f.ready
	return f.failure
}

func (f *feed) content() *list { return &f.list }

// Destruct ends the following.
func (f *feed) Destruct() error {
	f.stop()
	<-f.done
	f.uncopied.Close()
	f.forget()
	return nil
}

func (f *feed) follow(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := f.fetch(ctx, f.timeout, fetchLimit)
		if ctx.Err() != nil {
			return
		}
		failures++
		if err == nil {
			failures = 0
		} else {
			f.keep(err)
		}
		pause := f.pause(failures)
		if asked := f.askedFor(err); asked > 0 {
			f.note(ctx, feedNote{Checked: f.confirmedAt(), NotBefore: time.Now().Add(asked)})
			pause = max(pause, time.Duration(float64(asked)*(1+jitter*rand.Float64()))) // not before
		}
		timer.Reset(pause)
	}
}

// pause is the time until the next request.
func (f *feed) pause(failures int) time.Duration {
	if failures == 0 {
		return withJitter(f.interval)
	}
	const enough = 20 // doublings, beyond every interval that makes sense
	return withJitter(min(firstRetry<<min(failures-1, enough), f.interval))
}

// askedFor is the pause that the server has asked for. One that is asked too often and does not say more is left alone for
// the interval.
func (f *feed) askedFor(err error) time.Duration {
	var answer *fetch.StatusError
	if !errors.As(err, &answer) {
		return 0
	}
	asked := answer.RetryAfter
	if asked == 0 && answer.Status == http.StatusTooManyRequests {
		asked = f.interval
	}
	return min(asked, maxRetryAfter)
}

func withJitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
}

// unchanged is called when the server still has the list that is in use.
func (f *feed) unchanged(ctx context.Context) {
	now := time.Now()
	f.succeeded(now)
	f.note(ctx, feedNote{Checked: now})
}

// taken is called with what the server has sent.
func (f *feed) taken(ctx context.Context, header http.Header, body []byte, set *ipset.Set, report ipset.Report) {
	f.have = feedCopy{
		ETag:         header.Get("ETag"),
		LastModified: header.Get("Last-Modified"),
		Fetched:      time.Now(),
		URL:          f.url,
	}
	f.loaded(set, report)
	f.stored(f.save(ctx, body))
}

func (f *feed) stored(err error) {
	if err != nil {
		f.uncopied.Begin(f.log(), "the copy of a list can't be stored, so a restart will need the server of it", zap.Error(err))
	} else {
		f.uncopied.End(f.log(), "the copy of a list is stored again")
	}
}

// key is where the storage has the last good copy.
func (f *feed) key() string {
	sum := sha256.Sum256([]byte(f.url))
	return feedsFolder + "/" + hex.EncodeToString(sum[:16])
}

func (f *feed) save(ctx context.Context, body []byte) error {
	head, err := json.Marshal(f.have)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return f.storage.Value().Store(ctx, f.key(), append(append(head, '\n'), body...))
}

// noteKey is where the storage has what is known beside the copy.
func (f *feed) noteKey() string { return f.key() + ".json" }

// note stores what is known beside the copy. It is no harm if that fails: the server is asked once more after a restart.
func (f *feed) note(ctx context.Context, note feedNote) {
	if f.interval < minNoted && note.NotBefore.IsZero() {
		return
	}
	value, err := json.Marshal(note)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := f.storage.Value().Store(ctx, f.noteKey(), value); err != nil {
		f.log().Debug("storing when a list was asked for", zap.Error(err))
	}
}

// restore begins with the last good copy, and returns when the server is to be asked. It reports false where there is no copy.
func (f *feed) restore(ctx context.Context) (wait time.Duration, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	value, err := f.storage.Value().Load(ctx, f.key())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false
	}
	var have feedCopy
	var set *ipset.Set
	var report ipset.Report
	if err == nil {
		head, body, _ := bytes.Cut(value, []byte{'\n'})
		if err = json.Unmarshal(head, &have); err == nil {
			set, report, err = ipset.Read(bytes.NewReader(body), f.hostBits)
		}
	}
	if err != nil {
		f.log().Warn("the stored copy of a list can't be used, so its server is asked first", zap.Error(err))
		return 0, false
	}
	var note feedNote
	if value, err := f.storage.Value().Load(ctx, f.noteKey()); err == nil {
		_ = json.Unmarshal(value, &note) // as if there were none
	}
	if note.Checked.Before(have.Fetched) {
		note.Checked = have.Fetched
	}
	f.have = have
	f.loaded(set, report)
	f.succeeded(note.Checked)
	return f.due(note), true
}

// due is how long the server need not be asked. Times to come are the work of a clock that was wrong, and bounded.
func (f *feed) due(note feedNote) time.Duration {
	interval := withJitter(f.interval)
	wait := min(interval-time.Since(note.Checked), interval)
	asked := min(time.Until(note.NotBefore), maxRetryAfter)
	return max(wait, asked, 0)
}
