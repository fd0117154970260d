package ratelimit

import (
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// reasonGone is the reason of a connection whose client has left before its turn came.
const reasonGone = "client_gone"

// stopping is closed when the process stops: nobody waits any more then, also not for the handler of a config that was replaced
// long before.
var stopping = make(chan struct{})

func init() { session.OnStop(func() { close(stopping) }) }

// waits reports whether the turn of a connection has come. If not, the connection has been closed, with a session of its own.
func (h *Handler) waits(cx *layer4.Connection, v *visitor, w *waiter, held *holding, limit *limit) bool {
	defer session.Await()()
	v.Waits()
	reason := h.wait(cx, v, w)
	if reason == "" {
		return true
	}
	held.release()
	h.endWaiting(v, limit, reason)
	return false
}

// wait returns when it is the turn of a connection, with no reason, or why it has ended before: its client has gone, its listener has
// ended it, or the process stops. A reload ends no waiting: a connection goes on as the config says that has accepted it.
func (h *Handler) wait(cx *layer4.Connection, v *visitor, w *waiter) (reason string) {
	conn := v.Accepted()
	if udp, ok := conn.(interface{ OnEnd(f func(reason string)) }); ok {
		udp.OnEnd(w.hasGone)
		defer udp.OnEnd(nil)
	}
	spoken := len(cx.MatchingBytes()) > 0
	defer w.queue.watch.Add(conn, spoken, func(bool) { w.hasGone(reasonGone) })()
	select {
	case <-w.ready:
		return ""
	case <-w.gone:
		reason = w.why
	case <-stopping:
		reason = session.ReasonShutdown
	}
	w.leave()
	return reason
}

// endWaiting closes a connection that has ended before its turn came.
func (h *Handler) endWaiting(v *visitor, limit *limit, reason string) {
	s := v.Begin(h.scope)
	collectors.decisions.WithLabelValues(v.Listener, limit.name, "gone").Inc()
	s.SetRule(limit.name)
	_ = v.Accepted().Close()
	s.End(session.End{Status: session.StatusLimited, Reason: reason})
}
