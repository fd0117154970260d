package forward

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
	"github.com/portgate/caddy-portgate/modules/internal/fetch"
)

func init() { caddy.RegisterModule(new(URLUpstreams)) }

// URLUpstreams has the upstreams that a web server lists, in the form of those in a file. It is asked again and again, with the ETag of its last
// answer.
type URLUpstreams struct {
	// URL is where the list is: `http` or `https`.
	URL string `json:"url"`

	// Refresh is how often the server is asked. At least 1s. Default: 30s.
	Refresh *caddy.Duration `json:"refresh,omitempty"`

	// GracePeriod is how long the last good list is used while none comes. More than 0. Default: 24h.
	GracePeriod *caddy.Duration `json:"grace_period,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*URLUpstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: namespace + ".url", New: func() caddy.Module { return new(URLUpstreams) }}
}

// Source implements [discovery.Maker].
func (u *URLUpstreams) Source() (made discovery.Made, err error) {
	u.URL = known(u.URL)
	location, err := parseListURL(u.URL)
	if err != nil {
		return made, fmt.Errorf("url: %w", err)
	}
	source := &urlSource{url: u.URL}
	if source.refresh, err = refreshOf(u.Refresh); err != nil {
		return made, err
	}
	made, err = madeOf(source, "url "+location.Scheme+"://"+location.Host+location.Path, u.GracePeriod)
	made.Question = listOf(*location)
	return made, err
}

// listOf returns which list a URL names: that is the same one for another password. Another user may get another list, and another query too.
func listOf(location url.URL) string {
	location.Fragment = ""
	if _, has := location.User.Password(); has {
		location.User = url.User(location.User.Username())
	} else {
		location.User = nil // a token
	}
	return location.String()
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	url <url> {
//		refresh      <duration>
//		grace_period <duration>
//	}
func (u *URLUpstreams) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	return unmarshalSource(d, 1, "the URL of a list", func(args []string) error {
		u.URL = args[0]
		if hasPlaceholder(u.URL) {
			return nil
		}
		_, err := parseListURL(u.URL)
		return err
	}, refreshOption(&u.Refresh), positive("grace_period", &u.GracePeriod))
}

func parseListURL(s string) (*url.URL, error) {
	location, err := url.Parse(s)
	if err != nil || location.Scheme != "http" && location.Scheme != "https" || location.Host == "" {
		return nil, fmt.Errorf("%q: expected a URL such as https://example.com/upstreams", withoutSecrets(s))
	}
	return location, nil
}

// withoutSecrets returns what may be said of a URL that can't be read: nothing of its user, its password and its query.
func withoutSecrets(s string) string {
	shown, query := s, ""
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		shown, query = s[:i], s[i:i+1]+"***"
	}
	if i := strings.LastIndexByte(shown, '@'); i >= 0 {
		shown = "***" + shown[i:]
	} else if strings.Contains(s, "@") {
		return "***" // the password may have a question mark in it
	}
	return shown + query
}

const (
	// listSilence is how long the server of a list may send nothing, and listLimit how long all of it may take.
	listSilence = 10 * time.Second
	listLimit   = time.Minute
)

// urlSource asks a web server for upstreams.
type urlSource struct {
	url     string
	refresh time.Duration

	etag, modified string // of the last good list
}

// Run implements [discovery.Source].
func (s *urlSource) Run(ctx context.Context, to discovery.Sink) {
	client := fetch.NewClient()
	s.etag, s.modified = "", ""
	discovery.Poll(ctx, to, s.refresh, func(ctx context.Context) (answer discovery.Answer, asked time.Duration, err error) {
		request := fetch.Request{URL: s.url, ETag: s.etag, LastModified: s.modified, Silence: listSilence, Limit: listLimit, What: "list"}
		err = request.Do(ctx, client, func(resp *http.Response, body io.Reader) (err error) {
			answer, err = s.take(resp, body)
			return err
		})
		var status *fetch.StatusError
		if errors.As(err, &status) {
			asked = status.RetryAfter
		}
		return answer, asked, err
	})
}

// take reads a list. An empty one, or one without a good entry, is asked for as a whole again.
func (s *urlSource) take(resp *http.Response, body io.Reader) (discovery.Answer, error) {
	if resp.StatusCode == http.StatusNotModified && s.etag+s.modified != "" {
		return discovery.Answer{}, discovery.ErrSame
	}
	s.etag, s.modified = "", ""
	if resp.StatusCode != http.StatusOK {
		return discovery.Answer{}, fetch.StatusOf(resp)
	}
	data, err := io.ReadAll(io.LimitReader(body, discovery.MaxBytes+1))
	if err != nil {
		return discovery.Answer{}, err
	}
	answer, err := discovery.Parse(data, false)
	if err == nil && len(answer.Entries) > 0 {
		s.etag, s.modified = resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
	}
	return answer, err
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (u *URLUpstreams) UnmarshalJSON(data []byte) error {
	type options URLUpstreams
	return caddyfile.UnmarshalJSON(data, (*options)(u))
}

// Interface guards
var (
	_ caddycaddyfile.Unmarshaler = (*URLUpstreams)(nil)
	_ discovery.Maker            = (*URLUpstreams)(nil)
	_ json.Unmarshaler           = (*URLUpstreams)(nil)
)
