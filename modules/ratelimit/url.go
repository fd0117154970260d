package ratelimit

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// expand returns the store's URL with its placeholders replaced. In the user, the password and the query their values stand for
// themselves, whatever characters they have; elsewhere they are a part of the URL, as in {env.REDIS_URL}.
func (s *Store) expand() (string, error) {
	repl := caddy.NewReplacer()
	before, credentials, between, query := splitURL(s.URL)
	var err error
	for _, literal := range []*string{&credentials, &query} {
		*literal, err = repl.ReplaceFunc(*literal, func(placeholder string, value any) (any, error) {
			text := caddy.ToString(value)
			if text == "" { // of a file, too, that can't be read
				return nil, fmt.Errorf("{%s}: expected a value, but it is unknown or empty", placeholder)
			}
			return strings.ReplaceAll(url.QueryEscape(text), "+", "%20"), nil
		})
		if err != nil {
			return "", err
		}
	}
	return repl.ReplaceKnown(before, "") + credentials + repl.ReplaceKnown(between, "") + query, nil
}

// splitURL cuts a URL before and behind its user and password, and before its query. What is in a placeholder separates nothing.
func splitURL(raw string) (before, credentials, between, query string) {
	opaque := placeholder.ReplaceAllStringFunc(raw, func(found string) string { return strings.Repeat("x", len(found)) })
	end := len(raw)
	if i := strings.IndexByte(opaque, '?'); i >= 0 {
		end = i
	}
	start := 0
	if i := strings.Index(opaque[:end], "://"); i >= 0 {
		start = i + len("://")
	}
	authority := opaque[start:end]
	if i := strings.IndexByte(authority, '/'); i >= 0 {
		authority = authority[:i]
	}
	at := start
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		at += i
	}
	return raw[:start], raw[start:at], raw[at:end], raw[end:]
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// harmless matches a URL in which there is no password.
var harmless = regexp.MustCompile(`^([a-z]+://)?(\{[^{}]*\}|[\w.-]+|\[[0-9a-f:.]*\])?(:\d*)?(/[\w./-]*)?$`)

// quote adds the URL as it was written to an error about it, unless there may be a password in it.
func (s *Store) quote(err error) error {
	if s.URL == "" || !harmless.MatchString(s.URL) {
		return err
	}
	return fmt.Errorf("%q: %w", s.URL, err)
}
