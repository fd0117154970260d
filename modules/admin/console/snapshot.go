package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

const (
	// fetchTimeout is how long top waits for what it shows.
	fetchTimeout = 15 * time.Second
	// sessionsShown is how many sessions top asks for: those that the order has first.
	sessionsShown = 200
	// upstreamsShown is the same for upstreams, so that no config makes an answer that is too long.
	upstreamsShown = 1000
)

// snapshot is what top shows, as the API has told it.
type snapshot struct {
	at        time.Time
	status    *status // nil where the process has no such endpoint
	upstreams upstreams
	sessions  sessions

	raw rawSnapshot
}

// rawSnapshot has the answers as they are.
type rawSnapshot struct {
	Time      time.Time       `json:"time"`
	Status    json.RawMessage `json:"status,omitempty"`
	Upstreams json.RawMessage `json:"upstreams"`
	Sessions  json.RawMessage `json:"sessions"`
}

// fetch asks the API for all that top shows.
func fetch(ctx context.Context, client *adminapi.Client, filter url.Values, sort string, limit int) (s *snapshot, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	s = new(snapshot)
	get := func(path string, raw *json.RawMessage, v any) {
		if err != nil {
			return
		}
		if *raw, err = client.Do(ctx, http.MethodGet, path, nil); err == nil {
			err = decodeAnswer(*raw, v)
		}
	}
	query := make(url.Values, len(filter)+2)
	for name, values := range filter {
		query[name] = values
	}
	query.Set("sort", sort)
	query.Set("limit", strconv.Itoa(limit))
	get(sessionsPath+question(query), &s.raw.Sessions, &s.sessions)
	get(upstreamsPath+"?limit="+strconv.Itoa(upstreamsShown), &s.raw.Upstreams, &s.upstreams)
	s.status = new(status)
	get(statusPath, &s.raw.Status, s.status)
	var refusal *adminapi.Refusal
	if errors.As(err, &refusal) && refusal.Status == http.StatusNotFound && s.raw.Status == nil && s.raw.Upstreams != nil {
		s.status, err = nil, nil // an older one
	}
	s.at = time.Now()
	s.raw.Time = s.at
	s.upstreams.sort()
	return s, err
}

// sort puts first those with which something is wrong, and then those with the most sessions.
func (all upstreams) sort() {
	slices.SortStableFunc(all, func(a, b upstream) int {
		return cmp.Or(
			cmp.Compare(trouble(a.State), trouble(b.State)),
			cmp.Compare(b.Sessions, a.Sessions),
			strings.Compare(a.Name, b.Name),
		)
	})
}

// trouble orders states: what is wrong by itself, what somebody has set, what is on its way, what is right.
func trouble(state string) int {
	switch state {
	case "down", "ejected", "open":
		return 0
	case "drain", "maint":
		return 1
	case "up":
		return 3
	}
	return 2
}
