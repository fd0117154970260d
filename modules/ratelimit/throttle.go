package ratelimit

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/throttle"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// throttle returns the limits of the session from now on, nil where there are none. They are kept in memory also
// where there is a store: a datagram does not wait for an answer.
func (h *Handler) throttle(v *visitor, held *holding) *throttle.Throttle {
	moving := h.limits.moving() && !h.DryRun
	if held == nil && !moving {
		return nil
	}
	t := new(throttle.Throttle)
	if held != nil {
		t.End = held.release
	}
	if !moving {
		return t
	}
	up, down := h.pacer(h.limits.up, v), h.pacer(h.limits.down, v)
	if up != nil {
		t.PaceUp = up
	}
	if down != nil {
		t.PaceDown = down
		t.AllowDown = func(size int) bool { return down.allow(size, nil) }
	}
	datagrams := h.datagrams(v)
	if up != nil || datagrams != nil {
		t.AllowUp = func(size int) bool { return up.allow(size, datagrams) }
	}
	return t
}

func (h *Handler) requests(limits []limit, v *visitor) []bucket.Request {
	if len(limits) == 0 {
		return nil
	}
	requests := make([]bucket.Request, len(limits))
	for i := range limits {
		requests[i] = h.request(&limits[i], v)
	}
	return requests
}

// datagrams returns a function that decides about one datagram and counts the decision, or nil if there is no limit.
func (h *Handler) datagrams(v *visitor) func() bool {
	requests := h.requests(h.limits.datagrams, v)
	if requests == nil {
		return nil
	}
	h.scope.Hold("listener", v.Listener)
	counter := func(result string) (all []prometheus.Counter) {
		for i := range h.limits.datagrams {
			all = append(all, collectors.decisions.WithLabelValues(v.Listener, h.limits.datagrams[i].name, result))
		}
		return all
	}
	admitted, refused := counter("admitted"), counter("refused")
	memory := h.buckets.Value().memory
	return func() bool {
		d := memory.Decide(now(), requests)
		if d.Refused {
			refused[d.Limit].Inc()
			return false
		}
		for _, c := range admitted {
			c.Inc()
		}
		return true
	}
}

// pacer is a [throttle.Pacer]. A nil pacer limits nothing.
type pacer struct {
	*bucket.Pacer
	asked bool          // allow was called before
	until time.Duration // when the pause of a session of datagrams is over
}

func (h *Handler) pacer(limits []limit, v *visitor) *pacer {
	if len(limits) == 0 {
		return nil
	}
	return &pacer{Pacer: bucket.NewPacer(h.buckets.Value().memory, h.requests(limits, v)...)}
}

// Moved implements [throttle.Pacer].
func (p *pacer) Moved(n int) (pause time.Duration) {
	t := now()
	return max(p.Pacer.Moved(t, n)-t, 0)
}

// allow reports whether a datagram may pass. A datagram can't be delayed: it is dropped when it comes in a pause of its
// session. So sessions that share a limit take turns as streams do, and one that sends little loses little. others is
// asked first: what it refuses is not charged.
func (p *pacer) allow(size int, others func() bool) bool {
	if p == nil {
		return others == nil || others()
	}
	return p.allowAt(now(), size, others)
}

func (p *pacer) allowAt(t time.Duration, size int, others func() bool) bool {
	if !p.asked { // else each session would have its first turn for nothing
		p.asked, p.until = true, p.Pacer.Moved(t, 0)
	}
	if t < p.until || others != nil && !others() {
		return false
	}
	p.until = p.Pacer.Moved(t, size)
	return true
}
