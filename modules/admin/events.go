package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/events"
)

const eventsPath = "/portgate/events"

const (
	// maxStreams bounds the streams that are open at the same time. Each has a connection and a goroutine.
	maxStreams = 100
	// reconnectAfter is when a client is to come again whose stream has ended, as with a reload.
	reconnectAfter = time.Second
	// aliveEvery is how often a stream with nothing to say says so: else nobody would notice that its client has gone.
	aliveEvery = 15 * time.Second
	// mostBetweenStatus bounds ?status=.
	mostBetweenStatus = time.Hour
)

var streamsNow atomic.Int64

// stream sends events to one client. What he reads too slowly is lost, and he is told how much: events are read from what is kept of all,
// so he takes no memory for those that he has not read yet.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	read    uint64 // the number of the last event that was sent
	follows bool   // the client has had the events until then: others are lost if they are not kept
	since   func(number uint64) (some []*events.Event, lost, last uint64, more <-chan struct{})
	every   time.Duration // between two reports of the status; 0: there are none
}

// serveEvents serves the stream of events, until the client leaves or until is done.
func serveEvents(w http.ResponseWriter, r *http.Request, until <-chan struct{}) error {
	s := &stream{w: w, control: http.NewResponseController(w), since: events.Since}
	if err := s.parse(r); err != nil {
		return err
	}
	defer streamsNow.Add(-1)
	if streamsNow.Add(1) > maxStreams {
		return adminapi.Error(http.StatusServiceUnavailable, "expected at most %d streams of events at the same time", maxStreams)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	_ = s.control.SetReadDeadline(time.Time{}) // that of the server is for requests: with it this one would end as if its client had left
	_ = s.serve(r.Context(), until)            // there is nobody any more who could be told of an error
	_ = s.control.SetWriteDeadline(time.Time{})
	return nil
}

func (s *stream) parse(r *http.Request) (err error) {
	if err := adminapi.Method(r, http.MethodGet); err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return adminapi.Error(http.StatusBadRequest, "query: %q: %w", r.URL.RawQuery, err)
	}
	if err := adminapi.Parameters(query, "status"); err != nil {
		return err
	}
	if query.Has("status") {
		every, err := caddyfile.ParseDuration(query.Get("status"))
		if s.every = time.Duration(every); err != nil || s.every < time.Second || s.every > mostBetweenStatus {
			return adminapi.Error(http.StatusBadRequest, "status: %q: expected a duration from 1s to 1h", query.Get("status"))
		}
	}
	// An ID of another process is none: then there are all events of this one.
	s.read, s.follows = events.Number(r.Header.Get("Last-Event-ID"))
	return nil
}

// serve sends what there is, and then what comes.
func (s *stream) serve(ctx context.Context, until <-chan struct{}) error {
	ticks, stop := s.ticks()
	defer stop()
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	err := s.write("retry: %d\n\n", reconnectAfter.Milliseconds())
	if err == nil && s.every > 0 {
		err = s.sendStatus()
	}
	for err == nil {
		var more <-chan struct{}
		if more, err = s.sendNew(); err != nil {
			return err
		}
		if err = s.control.Flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-until:
			_, err = s.sendNew()
			return err
		case <-more:
		case <-ticks:
			err = s.sendStatus()
		case <-alive.C:
			err = s.write(":\n\n")
		}
	}
	return err
}

func (s *stream) ticks() (ticks <-chan time.Time, stop func()) {
	if s.every == 0 {
		return nil, func() {}
	}
	ticker := time.NewTicker(s.every)
	return ticker.C, ticker.Stop
}

// sendNew sends the events that were not sent yet.
func (s *stream) sendNew() (more <-chan struct{}, err error) {
	some, lost, last, more := s.since(s.read)
	if lost > 0 && s.follows {
		told := events.New("lost", events.Warn, fmt.Sprintf("%d events are not kept any more", lost), zap.Uint64("lost", lost))
		if err := s.write("event: lost\ndata: %s\n\n", told.JSON); err != nil {
			return nil, err
		}
	}
	s.read, s.follows = last, true
	for _, e := range some {
		if err := s.write("event: %s\nid: %s\ndata: %s\n\n", e.Name, e.ID(), e.JSON); err != nil {
			return nil, err
		}
	}
	return more, nil
}

func (s *stream) sendStatus() error {
	text, err := statusText()
	if err != nil {
		return err
	}
	return s.write("event: status\ndata: %s\n\n", text)
}

// write gives the client some time to read what was sent before.
func (s *stream) write(format string, args ...any) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(answerTimeout)) // a writer without deadlines does without
	_, err := fmt.Fprintf(s.w, format, args...)
	return err
}
