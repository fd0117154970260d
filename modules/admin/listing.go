package admin

import (
	"cmp"
	"context"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// listing is a request for sessions.
type listing struct {
	filter
	sort       string // one of sortNames; "": by ID
	descending bool
	limit      int // 0: none
	csv        bool
}

// found is a session with what orders it: a text or a number.
type found struct {
	session *session.Session
	text    string
	number  float64
}

const byID = "session_id"

// readerOf returns what reads of a session what orders it. Numbers come the largest first, texts in the order of the alphabet.
func readerOf(sort string) func(f *found, l *session.Look) {
	number := func(read func(l *session.Look) float64) func(*found, *session.Look) {
		return func(f *found, l *session.Look) { f.number = read(l) }
	}
	switch sort {
	case "listener":
		return func(f *found, _ *session.Look) { f.text = f.session.Listener }
	case "upstream":
		return func(f *found, l *session.Look) { f.text = l.Upstream }
	case "state":
		return func(f *found, l *session.Look) { f.text = string(l.State) }
	case "duration":
		return func(f *found, _ *session.Look) { f.number = time.Since(f.session.Start).Seconds() }
	case "idle":
		return number(func(l *session.Look) float64 { return time.Since(l.LastActive).Seconds() })
	case "bytes":
		return number(func(l *session.Look) float64 { return float64(l.BytesUp + l.BytesDown) })
	case "bytes_up":
		return number(func(l *session.Look) float64 { return float64(l.BytesUp) })
	case "bytes_down":
		return number(func(l *session.Look) float64 { return float64(l.BytesDown) })
	case "rate", "rate_up", "rate_down":
		return func(f *found, l *session.Look) {
			up, down, _ := measured.of(f.session, l.BytesUp, l.BytesDown, l.LastActive)
			switch f.number = up + down; sort {
			case "rate_up":
				f.number = up
			case "rate_down":
				f.number = down
			}
		}
	}
	return func(*found, *session.Look) {} // what the session itself has
}

// sortNames are their names, in the order in which an error gives them.
var sortNames = []string{
	byID, "client_ip", "listener", "upstream", "state", "duration", "idle", "bytes", "bytes_up", "bytes_down", "rate", "rate_up", "rate_down",
}

func parseListing(query url.Values) (l listing, err error) {
	if err := adminapi.Parameters(query, listNames...); err != nil {
		return l, err
	}
	if l.filter, err = parseFilter(query); err != nil {
		return l, err
	}
	if err := once(query, "sort", "limit", "after", "format"); err != nil {
		return l, err
	}
	wrong := func(name string, err error) error { return adminapi.Error(http.StatusBadRequest, "%s: %w", name, err) }
	if query.Has("sort") {
		l.sort, l.descending = strings.CutPrefix(query.Get("sort"), "-")
		if err := caddyfile.OneOf(l.sort, sortNames...); err != nil {
			return l, wrong("sort", err)
		}
	}
	if query.Has("limit") {
		if l.limit, err = caddyfile.ParseCount(query.Get("limit"), 1, maxPage); err != nil {
			return l, wrong("limit", err)
		}
	}
	if query.Has("after") {
		if l.after, err = parseID(query.Get("after")); err != nil {
			return l, wrong("after", err)
		}
		if !l.pages() {
			return l, adminapi.Error(http.StatusBadRequest, "after: expected the order of session_id, because other orders change between two pages")
		}
	}
	if query.Has("format") {
		if err := caddyfile.OneOf(query.Get("format"), "json", "csv"); err != nil {
			return l, wrong("format", err)
		}
		l.csv = query.Get("format") == "csv"
	}
	return l, nil
}

// pages reports whether the order is one in which a next page begins behind the last session of this one.
func (l *listing) pages() bool { return (l.sort == "" || l.sort == byID) && !l.descending }

func serveList(w http.ResponseWriter, r *http.Request, query url.Values) error {
	l, err := parseListing(query)
	if err != nil {
		return err
	}
	if begins := measured.look(); begins && strings.HasPrefix(l.sort, "rate") {
		if err := wait(r.Context(), tickEvery); err != nil {
			return err
		}
	}
	all := l.choose()
	if l.limit > 0 && len(all) > l.limit {
		all = all[:l.limit]
		if l.pages() {
			query.Set("after", all[l.limit-1].session.ID.String())
			w.Header().Set("Link", "<"+sessionsPath+"?"+query.Encode()+`>; rel="next"`)
		}
	}
	to := &answer{w: w, control: http.NewResponseController(w)}
	defer to.end()
	if l.csv {
		return answerCSV(w, to.rows(all))
	}
	return adminapi.AnswerEach(w, to.rows(all))
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// choose returns the sessions that pass the filter, in order. Sessions are read without a lock that one of them could wait for.
func (l *listing) choose() (all []found) {
	read, looks := readerOf(l.sort), l.changing() || !l.pages()
	now := startOfShare()
	defer now.end()
	session.EachLiving(func(s *session.Session) {
		now.step()
		if !l.matchesFixed(s) {
			return
		}
		f := found{session: s}
		if looks {
			look, living := s.Look()
			if !living || !l.matchesNow(&look) {
				return
			}
			read(&f, &look)
		}
		all = append(all, f)
	})
	slices.SortFunc(all, func(a, b found) int {
		now.step()
		c := cmp.Or(strings.Compare(a.text, b.text), cmp.Compare(b.number, a.number))
		if l.sort == "client_ip" {
			c = a.session.Client.Compare(b.session.Client)
		}
		if c = cmp.Or(c, cmp.Compare(a.session.ID, b.session.ID)); l.descending {
			return -c
		}
		return c
	})
	return all
}

// answerTimeout is how long whoever has asked may take to read some of the answer.
const answerTimeout = 30 * time.Second

// rowsPerDeadline is after how many rows the time begins anew.
const rowsPerDeadline = 1000

// answer writes rows to somebody who may read slowly, or not at all.
type answer struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

// rows reads each session when its turn comes. The row is good until the next one.
func (a *answer) rows(all []found) iter.Seq[*row] {
	return func(yield func(*row) bool) {
		var one row
		now := startOfShare()
		defer now.end()
		for i := range all {
			if i%rowsPerDeadline == 0 {
				_ = a.control.SetWriteDeadline(time.Now().Add(answerTimeout)) // a writer without deadlines does without
			}
			now.step()
			if one.read(all[i].session, measured) && !yield(&one) {
				return
			}
			all[i].session = nil // what has ended is not to stay in memory for who reads slowly
		}
	}
}

// end sends what is left of the answer, and has the connection serve the next request without the deadline.
func (a *answer) end() {
	_ = a.control.Flush()
	_ = a.control.SetWriteDeadline(time.Time{})
}
