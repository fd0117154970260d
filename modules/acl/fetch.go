package acl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

const (
	// defaultTimeout is how long a server may be silent, unless the config says otherwise.
	defaultTimeout = 30 * time.Second
	minTimeout     = time.Second
	// fetchLimit bounds one request as a whole: a list of the size that is allowed takes so long at 1 MBit/s.
	fetchLimit = 10 * time.Minute
	// firstTimeout and firstLimit replace them while a config waits for a list to be loaded.
	firstTimeout = 10 * time.Second
	firstLimit   = 30 * time.Second
	// maxRedirects is how often a server may point to another place.
	maxRedirects = 5
)

var feedClient = &http.Client{Transport: feedTransport(), CheckRedirect: checkRedirect}

// feedTransport keeps no connection between two requests that are an hour apart. Lists are unpacked when they are read,
// because it is what comes over the network that tells whether the server is silent.
func feedTransport() *http.Transport {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	transport.DisableCompression = true
	return transport
}

// checkRedirect is asked before a redirect is followed. A user's name and password go nowhere else, because they come from
// the URL; a key in its query would, in the header Referer.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("expected at most %d redirects", maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("the server redirects from https to http, expected https")
	}
	req.Header.Del("Referer")
	return nil
}

// answerError is the error for an answer without a list.
type answerError struct {
	status     int
	text       string
	retryAfter time.Duration // 0: the server does not say
}

func (e *answerError) Error() string {
	text := fmt.Sprintf("the server answered %s, expected 200 OK", e.text)
	if e.retryAfter > 0 {
		text += fmt.Sprintf("; it asks for a pause of %s", e.retryAfter.Round(time.Second))
	}
	return text
}

// silence cancels a request whose server sends nothing for some time.
type silence struct {
	timer   *time.Timer
	timeout time.Duration
	from    io.Reader
}

func watchSilence(ctx context.Context, timeout time.Duration) (context.Context, *silence) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &silence{timeout: timeout}
	s.timer = time.AfterFunc(timeout, func() { cancel(fmt.Errorf("the server sent nothing for %s", timeout)) })
	return ctx, s
}

func (s *silence) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	if n > 0 {
		s.timer.Reset(s.timeout)
	}
	return n, err
}

// fetch asks the server for the list, unless it is still the one that is in use. The server may be silent for the timeout,
// and the limit is for all of it.
func (f *feed) fetch(ctx context.Context, timeout, limit time.Duration) error {
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the server took more than %s to send the list", limit))
	defer cancel()
	watched, watch := watchSilence(limited, timeout)
	defer watch.timer.Stop()
	resp, err := f.request(watched)
	if err == nil {
		defer resp.Body.Close()
		watch.timer.Reset(timeout)
		watch.from = resp.Body
		err = f.answer(ctx, resp, watch)
	}
	if err != nil && watched.Err() != nil {
		err = context.Cause(watched)
	}
	return err
}

func (f *feed) request(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "gzip")
	if f.have.ETag != "" {
		req.Header.Set("If-None-Match", f.have.ETag)
	}
	if f.have.LastModified != "" {
		req.Header.Set("If-Modified-Since", f.have.LastModified)
	}
	resp, err := f.client.Do(req)
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return nil, failed.Err // without the URL, which may have a key in it
	}
	return resp, err
}

// answer takes over what the server has sent, if that is a list.
func (f *feed) answer(ctx context.Context, resp *http.Response, from io.Reader) error {
	switch {
	case resp.StatusCode == http.StatusNotModified && f.have.ETag+f.have.LastModified != "":
		f.unchanged(ctx)
		return nil
	case resp.StatusCode != http.StatusOK:
		return &answerError{resp.StatusCode, resp.Status, retryAfter(resp)}
	}
	encoding := strings.ToLower(resp.Header.Get("Content-Encoding"))
	if strings.Trim(encoding, " ") != "" && encoding != "identity" && encoding != "gzip" && encoding != "x-gzip" {
		return fmt.Errorf("content-encoding: %.32q: expected gzip or none", encoding)
	}
	var body bytes.Buffer
	set, report, err := ipset.Read(io.TeeReader(from, &body), f.hostBits)
	if err == nil && body.Len() == 0 {
		err = errors.New("the server sent nothing: expected a list, if only of comments")
	}
	if err != nil {
		return err
	}
	f.taken(ctx, resp.Header, body.Bytes(), set, report)
	return nil
}

// retryAfter is how long a server wants to be left alone: seconds or a date, by its own clock (RFC 9110, section 10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	value := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(date.Sub(now), 0), maxRetryAfter)
}
