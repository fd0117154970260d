package acl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

const (
	// defaultInterval is how often a feed is asked, unless the config says otherwise.
	defaultInterval = time.Hour
	// minInterval keeps a mistake from becoming an attack on who publishes the feed.
	minInterval = time.Second
	// fetchTimeout bounds one request, the whole answer included.
	fetchTimeout = 30 * time.Second
	// firstFetchTimeout replaces it while a config waits for the answer to be loaded.
	firstFetchTimeout = 10 * time.Second
	// firstRetry is the pause after a failure; it doubles with each further one, up to the interval.
	firstRetry = 5 * time.Second
	// jitter is the part of a pause that is left to chance, so that many gateways don't ask at the same moment.
	jitter = 0.2
)

// feed is a source that is fetched from a URL again and again.
type feed struct {
	list
	url      string
	interval time.Duration
	hostBits ipset.HostBits
	storage  storages

	stop context.CancelFunc
	done chan struct{}

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

// openFeed begins with the last good copy, or else with what the server sends now, and then follows the feed.
func openFeed(name, location string, interval time.Duration, hostBits ipset.HostBits, storage certmagic.Storage) (*feed, error) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &feed{url: location, interval: interval, hostBits: hostBits, stop: cancel, done: make(chan struct{}), uncopied: degraded.New("list_copy")}
	f.init(name)
	f.storage.use(storage)
	removeLeftovers(storage, feedsFolder)
	wait := time.Duration(0)
	if !f.restore(ctx) {
		if err := f.fetch(ctx, firstFetchTimeout); err != nil {
			cancel()
			return nil, err
		}
		wait = withJitter(interval)
	}
	f.opened()
	go f.follow(ctx, wait)
	return f, nil
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
	defer close(f.done)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := f.fetch(ctx, fetchTimeout); err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			failures++
			f.keep(err)
		}
		timer.Reset(f.pause(failures))
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

func withJitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
}

var feedClient = &http.Client{Transport: feedTransport()}

// feedTransport keeps no connection between two requests that are an hour apart.
func feedTransport() *http.Transport {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	return transport
}

// fetch asks the server for the list, unless it is still the one that is in use.
func (f *feed) fetch(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return err
	}
	if f.have.ETag != "" {
		req.Header.Set("If-None-Match", f.have.ETag)
	}
	if f.have.LastModified != "" {
		req.Header.Set("If-Modified-Since", f.have.LastModified)
	}
	resp, err := feedClient.Do(req)
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return failed.Err // without the URL, which may have a key in it
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && f.set.Load() != nil:
		f.unchanged()
		return nil
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the server answered %s, expected 200 OK", resp.Status)
	}
	return f.take(ctx, resp)
}

// unchanged is called when the server still has the list that is in use.
func (f *feed) unchanged() {
	f.succeeded(time.Now())
}

func (f *feed) take(ctx context.Context, resp *http.Response) error {
	var body bytes.Buffer
	set, report, err := ipset.Read(io.TeeReader(resp.Body, &body), f.hostBits)
	if err == nil && body.Len() == 0 {
		err = errors.New("the server sent nothing: expected a list, if only of comments")
	}
	if err != nil {
		return err
	}
	f.have = feedCopy{
		ETag:         resp.Header.Get("ETag"),
		LastModified: resp.Header.Get("Last-Modified"),
		Fetched:      time.Now(),
		URL:          f.url,
	}
	f.loaded(set, report)
	if err := f.save(ctx, body.Bytes()); err != nil {
		f.uncopied.Begin(f.log(), "the copy of a list can't be stored, so a restart will need the server of it", zap.Error(err))
	} else {
		f.uncopied.End(f.log(), "the copy of a list is stored again")
	}
	return nil
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
	value := append(append(head, '\n'), body...)
	return f.storage.youngest().Store(ctx, f.key(), value)
}

// restore begins with the last good copy. It reports false where there is none.
func (f *feed) restore(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	value, err := f.storage.youngest().Load(ctx, f.key())
	if errors.Is(err, fs.ErrNotExist) {
		return false
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
		return false
	}
	f.have = have
	f.loaded(set, report)
	f.succeeded(have.Fetched)
	return true
}
