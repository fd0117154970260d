package ratelimit

import (
	"fmt"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/refusal"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

func (h *Handler) action() refusal.Action {
	if len(h.OnLimit) == 0 {
		return refusal.Close
	}
	return refusal.Action(h.OnLimit[0])
}

// refuse ends the connection as on_limit says.
func (h *Handler) refuse(v *visitor, d bucket.Decision) *refusal.Held {
	s := v.Begin(h.scope)
	s.SetRule(h.limits.arrivals[d.Limit].name)
	way := refusal.Way{Action: h.action()}
	if way.Action == refusal.Respond {
		way.Text = h.text(d.Retry)
	}
	return refusal.Do(way, v.Arrival, s, session.End{Status: session.StatusLimited, Reason: session.ReasonLimited})
}

// text returns what `respond` sends to a client that may try again after a time.
func (h *Handler) text(retry time.Duration) []byte {
	if len(h.OnLimit) > 1 {
		return []byte(h.OnLimit[1])
	}
	const body = "Too Many Requests\n"
	seconds := max((retry+time.Second-1)/time.Second, 1)
	return fmt.Appendf(nil, "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\nRetry-After: %d\r\nConnection: close\r\n\r\n%s", len(body), seconds, body)
}
