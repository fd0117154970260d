// Package fetch asks a server for a file again and again: with the validators of the last answer, and with a limit on every wait.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxRetryAfter bounds the pause that a server asks for, so that a mistake of it does not end the asking.
	MaxRetryAfter = 24 * time.Hour
	// maxRedirects is how often a server may point to another place.
	maxRedirects = 5
)

// NewClient returns a client for requests.
func NewClient() *http.Client {
	return &http.Client{Transport: discreet{transport()}, CheckRedirect: checkRedirect}
}

// discreet keeps what a server sends, such as a key in a redirect, out of errors: net/http repeats what it can't read.
type discreet struct{ *http.Transport }

// Unwrap returns what makes the requests.
func (d discreet) Unwrap() *http.Transport { return d.Transport }

// RoundTrip implements [http.RoundTripper].
func (d discreet) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := d.Transport.RoundTrip(req)
	if err != nil {
		return nil, withoutAnswer(err)
	}
	if _, err := req.URL.Parse(resp.Header.Get("Location")); err != nil && resp.StatusCode/100 == 3 {
		_ = resp.Body.Close()
		return nil, errors.New("the server redirects to what is no URL")
	}
	return resp, nil
}

func withoutAnswer(err error) error {
	var failed *net.OpError
	if errors.As(err, &failed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasPrefix(err.Error(), unreadable) {
		return err
	}
	return errors.New("the answer of the server is not HTTP")
}

// unreadable is how an error of net/http for an answer begins that it can't read.
const unreadable = "net/http: HTTP/1.x transport connection broken: "

// Proxy returns the proxy that the environment names, as [http.ProxyFromEnvironment] does. What is wrong with its address is not said, because
// there may be a password in it.
func Proxy(req *http.Request) (*url.URL, error) { return proxyOf(req, http.ProxyFromEnvironment) }

func proxyOf(req *http.Request, environment func(*http.Request) (*url.URL, error)) (*url.URL, error) {
	proxy, err := environment(req)
	if err != nil {
		return nil, errors.New("the proxy in the environment: expected a URL such as http://proxy.example.com:3128")
	}
	return proxy, nil
}

// transport keeps no connection between two requests that are an hour apart. Lists are unpacked when they are read,
// because it is what comes over the network that tells whether the server is silent.
func transport() *http.Transport {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	transport.DisableCompression = true
	transport.Proxy = Proxy
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

// Request is a question for a file.
type Request struct {
	URL string
	// ETag and LastModified are those of the last answer; empty: there was none, or it had none.
	ETag, LastModified string
	// Gzip says that the answer may be packed. It is not unpacked.
	Gzip bool
	// Silence is how long the server may send nothing, and Limit how long all of it may take.
	Silence, Limit time.Duration
	// What is asked for, in errors.
	What string
}

// Do asks for it. take gets the answer, whatever its status, and its body, which it has to read before it returns.
func (r *Request) Do(ctx context.Context, client *http.Client, take func(resp *http.Response, body io.Reader) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, r.Limit, fmt.Errorf("the server took more than %s to send the %s", r.Limit, r.What))
	defer cancel()
	watched, watch := watchSilence(limited, r.Silence)
	defer watch.timer.Stop()
	resp, err := r.send(watched, client)
	if err == nil {
		defer resp.Body.Close()
		watch.timer.Reset(r.Silence)
		watch.from = resp.Body
		err = take(resp, watch)
	}
	if err != nil && watched.Err() != nil {
		err = context.Cause(watched)
	}
	return err
}

func (r *Request) send(ctx context.Context, client *http.Client) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
	if err != nil {
		return nil, err
	}
	if r.Gzip {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	if r.ETag != "" {
		req.Header.Set("If-None-Match", r.ETag)
	}
	if r.LastModified != "" {
		req.Header.Set("If-Modified-Since", r.LastModified)
	}
	resp, err := client.Do(req)
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return nil, failed.Err // without the URL, which may have a key in it
	}
	return resp, err
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

// StatusError is the error for an answer with another status than 200.
type StatusError struct {
	Status     int
	RetryAfter time.Duration // 0: the server does not say
	text       string
}

// Error says what the server has answered.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("the server answered %s, expected 200 OK", e.text)
	if e.RetryAfter > 0 {
		text += fmt.Sprintf("; it asks for a pause of %s", e.RetryAfter.Round(time.Second))
	}
	return text
}

// StatusOf returns the error for an answer.
func StatusOf(resp *http.Response) *StatusError {
	return &StatusError{resp.StatusCode, retryAfter(resp), resp.Status}
}

// retryAfter is how long a server wants to be left alone: seconds or a date, by its own clock (RFC 9110, section 10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	value := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(MaxRetryAfter/time.Second))) * time.Second
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(date.Sub(now), 0), MaxRetryAfter)
}
