package forward

import (
	"errors"
	"net"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/hangup"
	"github.com/portgate/caddy-portgate/modules/internal/hops"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/throttle"
)

// hangups notices clients that leave before they have an upstream, where no event loop does.
var hangups hangup.Watch

// relay prepares what moves the session's bytes. Upstreams are told who the client is, and then get what was prefetched.
func (h *Handler) relay(sess *session.Session, way *way, trip *hops.Trip, client net.Conn, told told, prefetched []byte) *relay.Relay {
	countLoops()
	taken, wait := descriptors.Of(client), way.wait
	way.Trials = h.guard.trials(sess)
	cfg := relay.Config{
		Client:     client,
		Unwrap:     listeners.Unwrap,
		Prefetched: prefetched,
		Preface:    told.all,
		Next:       way.next,
		Attempt:    way.attempted,
		First:      h.guard.firstOf(way.Trials),
		Track:      trackerOf(trip),
		Local:      h.from,
		Hangup:     hangups.Add,
		Limits:     h.limits,
		KeepAlive:  h.keepAlive,
		PaceUp:     sess.Limits().PaceUp,
		PaceDown:   sess.Limits().PaceDown,
		Name:       sess.ID,
		Done: func(result relay.Result) {
			taken.Release()
			trip.End()
			wait.over()
			end(sess, result.Reason, result.Connect, result.Err)
		},
	}
	if !way.roster.pool.Fixed() || way.awaits != nil { // else no upstream has two addresses
		cfg.Another, cfg.Spare = way.Another, spare{h.uncounted.reserve}
	}
	if way.roster.means != nil {
		cfg.Way, cfg.Wraps = func() relay.Way { return way.how(told) }, h.special.tls
	}
	if at := way.roster.closesFor(h); at != nil {
		done := cfg.Done
		cfg.Done = func(result relay.Result) {
			at.sessions.leave(sess)
			done(result)
		}
	}
	r := relay.New(cfg)
	if way.wait != nil {
		way.wait.notice = r.ClientWaits
	}
	sess.SetMover(mover{r})
	return r
}

// unwrap removes layer4's own wrapper, so that the relay has the socket. It returns cx if other handlers have wrapped the
// connection as well. What matchers have read is returned as a copy, because the buffer belongs to layer4.
func unwrap(cx *layer4.Connection) (net.Conn, []byte) {
	var prefetched []byte
	for conn := cx; ; {
		prefetched = append(prefetched, conn.MatchingBytes()...)
		inner := throttle.Unwrap(conn.Conn) // the relay keeps to the limits
		if proxied, ok := inner.(*listeners.Proxied); ok {
			inner = proxied.Conn
		}
		switch inner := inner.(type) {
		case *layer4.Connection:
			conn = inner
		case interface{ SetLinger(int) error }: // a TCP socket
			return inner.(net.Conn), prefetched
		case *net.UnixConn:
			return inner, prefetched
		default:
			return cx, nil // cx itself gives what was read
		}
	}
}

// mover is a relay as a session sees it.
type mover struct{ *relay.Relay }

func (m mover) Close(reason string)   { m.Relay.Close(relay.Reason(reason)) }
func (m mover) LastActive() time.Time { return m.Stats().LastActive }

func (m mover) Moved() (up, down int64) {
	stats := m.Stats()
	return stats.BytesUp, stats.BytesDown
}

// The reasons of sessions for which no upstream was tried.
const (
	reasonNoUpstream  = "no_upstream"  // all are drained, or full and there is no queue
	reasonBreakerOpen = "breaker_open" // the breakers of all that are left are open
)

// end ends a session as its relay did.
func end(sess *session.Session, reason relay.Reason, connect time.Duration, err error) {
	end := ended(reason, connect, err)
	switch end.Reason {
	case reasonNoUpstream, reasonBreakerOpen, reasonQueueFull, reasonQueueTimeout:
		refusals.WithLabelValues(sess.Listener, end.Reason).Inc()
	}
	sess.End(end)
}

// ended says how a session ended, from how its relay did. A relay that was closed while it connected has neither an error nor
// a connect time.
func ended(reason relay.Reason, connect time.Duration, err error) session.End {
	end := session.End{
		Connect:   connect,
		Connected: err == nil && connect > 0,
		Status:    session.StatusDone,
		Reason:    string(reason),
		Err:       err,
	}
	switch {
	case reason == reasonLoop:
		end.Status = session.StatusLoop
	case !end.Connected && (reason == relay.ClientReset || reason == relay.ClientFIN):
		end.Status, end.Err = session.StatusClientGone, nil // an error would say that Next was interrupted
	case errors.Is(err, upstream.ErrQueueFull):
		end.Status, end.Reason = session.StatusBusy, reasonQueueFull
	case errors.Is(err, upstream.ErrQueueTimeout):
		end.Status, end.Reason = session.StatusBusy, reasonQueueTimeout
	case errors.Is(err, upstream.ErrFull):
		end.Status, end.Reason = session.StatusBusy, reasonNoUpstream
	case errors.Is(err, upstream.ErrNone):
		end.Status, end.Reason = session.StatusNoUpstream, reasonNoUpstream
	case errors.Is(err, upstream.ErrBreakerOpen):
		end.Status, end.Reason = session.StatusNoUpstream, reasonBreakerOpen
	case reason == relay.ConnectTimeout:
		end.Status = session.StatusConnectTimeout
	case !end.Connected:
		end.Status = session.StatusNoUpstream
	}
	return end
}
