package forward

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/hops"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/throttle"
)

// datagrams prepares what moves a session of datagrams. Upstreams are told who the client is. first is the session's way to them, and begin begins another one.
func (h *Handler) datagrams(
	sess *session.Session, client net.Conn, told told, trip *hops.Trip, first *way, begin func(*roster) *way,
) *relay.PacketRelay {
	line, counts := h.succession.of(client)
	next := &datagramUpstreams{
		h: h, line: line, sess: sess, trip: trip, wait: first.wait, begin: begin, way: first, roster: first.roster,
		trials: h.guard.trials(sess),
	}
	first.Trials = next.trials
	cfg := relay.PacketConfig{
		Client:        client,
		Next:          next.next,
		Named:         !first.roster.pool.Fixed() || first.awaits != nil,
		Attempt:       next.attempted,
		Track:         trackerOf(trip),
		Local:         h.from,
		Limits:        h.datagramLimits,
		MaxReplies:    int64(h.maxReplies),
		MaxReplyRatio: h.maxReplyRatio,
		AllowUp:       sess.Limits().AllowUp,
		AllowDown:     sess.Limits().AllowDown,
		Name:          sess.ID,
		Done:          next.done,
	}
	if at := first.roster.closesFor(h); at != nil {
		done := cfg.Done
		cfg.Done = func(result relay.PacketResult) {
			at.sessions.leave(sess)
			done(result)
		}
	}
	if told.byVersion == nil {
		cfg.Preface = told.prefaceOf(h.preface)
	} else {
		cfg.PrefaceOf = func() *relay.Preface { return told.prefaceOf(next.current.Load().preface) }
	}
	if counts != nil {
		cfg.Dropped = func(why relay.Drop) { counts.Dropped[dropReasons[why]].Add(1) }
	}
	countLoops()
	r := relay.NewPacket(cfg)
	sess.SetMover(datagramMover{r, counts})
	if !line.add(sess) {
		sess.Close(session.ReasonOfConfigsEnd())
	}
	return r
}

var dropReasons = map[relay.Drop]listeners.DropReason{
	relay.DropQueueFull:       listeners.DropQueueFull,
	relay.DropUpstreamFull:    listeners.DropUpstreamFull,
	relay.DropUpstreamRefused: listeners.DropUpstreamRefused,
	relay.DropLimited:         listeners.DropLimited,
	relay.DropReplyRatio:      listeners.DropReplyRatio,
	relay.DropSendFailed:      listeners.DropSendFailed,
}

// datagramUpstreams picks the upstreams of one session. When all of them have refused datagrams it begins again: they may
// have come back, or have another address by now. Where something else than a refusal is wrong, it looks the same one up again.
type datagramUpstreams struct {
	h      *Handler
	line   *line
	sess   *session.Session
	trip   *hops.Trip
	wait   *waiting // that of the first way; nil where the session does not wait until an upstream may have it
	begin  func(*roster) *way
	trials *upstream.Trials // nil where there is no breaker

	way      *way // nil where roster and position say all that matters of it, as for most sessions
	roster   *roster
	position int

	current atomic.Pointer[datagramUpstream] // the upstream that has the session
}

// datagramUpstream is an upstream as configured, and where its address comes from.
type datagramUpstream struct {
	name    string
	source  upstream.Source
	preface preface // where not all upstreams have the same
	count   *session.Count
}

// attempted notes how an attempt to reach the upstream went.
func (u *datagramUpstream) attempted(h *Handler, sess *session.Session, addr net.Addr, err error) {
	if err == nil {
		u.source.Works(addr)
	}
	h.watch.attempted(sess, u.name, addr, err)
}

// attempted implements Attempt of a relay of datagrams. The first reply is what a breaker takes for the first byte.
func (u *datagramUpstreams) attempted(addr net.Addr, took time.Duration, err error) {
	if err != nil {
		u.trials.Failed(addr, took, err)
	} else {
		u.trials.Connected(addr, took)
		u.trials.Answered(took)
	}
	u.current.Load().attempted(u.h, u.sess, addr, err)
}

// done implements Done of a relay of datagrams.
func (u *datagramUpstreams) done(result relay.PacketResult) {
	u.line.remove(u.sess)
	u.trip.End()
	u.trials.Over()
	u.wait.over()
	end(u.sess, result.Reason, result.Connect, result.Err)
}

func (u *datagramUpstreams) next(ctx context.Context, failed error) (net.Addr, error) {
	if u.way == nil {
		u.way = u.begin(u.roster)
		u.way.Trials = u.trials
		u.way.Resume(u.position)
	}
	addr, err := u.goOn(ctx, failed)
	if u.way.Settled() {
		u.position = u.way.Position()
		u.way.over()
		u.way = nil
	}
	if at := u.roster.closesFor(u.h); at != nil && err == nil {
		at.has(u.sess, addr)
		if ctx.Err() != nil {
			at.sessions.leave(u.sess) // it has ended meanwhile
		}
	}
	return addr, err
}

func (u *datagramUpstreams) goOn(ctx context.Context, failed error) (addr net.Addr, err error) {
	if u.way.awaits != nil {
		if err := u.way.await(ctx); err != nil {
			return nil, err
		}
		u.roster = u.way.roster
	}
	hadUpstream, moved := trouble(failed)
	if moved {
		addr, err = u.way.Again(ctx)
	} else if hadUpstream {
		addr, err = u.way.Next(ctx, failed)
	} else {
		addr, err = u.way.find(ctx, failed)
		u.roster = u.way.roster
	}
	if failed == nil {
		u.h.watch.chosen(u.sess, &u.way.Walk)
	}
	if err != nil && hadUpstream {
		u.way = u.begin(u.h.latest().rosters.now.Load())
		u.roster, u.way.Renew, u.way.Trials = u.way.roster, true, u.trials
		addr, err = u.way.Next(ctx, nil)
		u.h.watch.chosen(u.sess, &u.way.Walk)
	}
	if now := u.current.Load(); err != nil && now != nil { // the session keeps its upstream
		u.sess.Recount(now.count)
		return nil, err
	}
	u.current.Store(u.roster.upstreamOf(&u.way.Walk))
	u.roster.count(u.sess, &u.way.Walk, addr)
	return addr, err
}

// trouble tells of an error whether the session has an upstream, and whether that may have another address by now.
func trouble(failed error) (hadUpstream, moved bool) {
	if failed == nil {
		return false, false
	}
	var lost *relay.Lost
	if !errors.As(failed, &lost) {
		return false, false
	}
	return true, !lost.Refused
}

// detach takes a UDP session away from layer4, which would close it when Handle returns. It returns cx if a handler has wrapped
// the session, or if its network can't detach it. Then Handle must not return before the session ends.
func detach(cx *layer4.Connection) net.Conn {
	for conn := cx; ; {
		inner := throttle.Unwrap(conn.Conn)
		if proxied, ok := inner.(*listeners.Proxied); ok {
			inner = proxied.Conn
		}
		switch inner := inner.(type) {
		case *layer4.Connection:
			conn = inner
		case interface{ Detach() (net.Conn, bool) }:
			if given, ok := inner.Detach(); ok {
				return given
			}
			return cx
		default:
			return cx
		}
	}
}

// datagramMover is a relay of datagrams as a session sees it.
type datagramMover struct {
	*relay.PacketRelay
	counts *listeners.Datagrams
}

func (m datagramMover) Close(reason string)   { m.PacketRelay.Close(relay.Reason(reason)) }
func (m datagramMover) LastActive() time.Time { return m.Stats().LastActive }

func (m datagramMover) Counts() *listeners.Datagrams { return m.counts }

func (m datagramMover) Moved() (up, down int64) {
	stats := m.Stats()
	return stats.BytesUp, stats.BytesDown
}

func (m datagramMover) Datagrams() (up, down int64) {
	stats := m.Stats()
	return stats.DatagramsUp, stats.DatagramsDown
}
