package forward

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

const defaultTryInterval = 250 * time.Millisecond

// Queue is the sessions that wait while all upstreams have as many as they may.
type Queue struct {
	// Count is how many wait at once. Those beyond are refused. From 1 to 1000000.
	Count int `json:"count"`

	// Duration is how long one waits before it is refused. More than 0.
	Duration caddy.Duration `json:"duration"`
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (q *Queue) UnmarshalJSON(data []byte) error {
	type options Queue
	return caddyfile.UnmarshalJSON(data, (*options)(q))
}

var (
	errNoLimit    = errors.New("expected max_connections in the block of an upstream, because sessions wait only while all have as many as they may")
	errNoDuration = errors.New("expected lb_try_duration, too: without it upstreams are not tried again")
)

// waitOptions are the options of a Caddyfile that have sessions wait.
func (h *Handler) waitOptions() []caddyfile.Option {
	return []caddyfile.Option{
		duration("lb_try_duration", &h.LBTryDuration),
		positive("lb_try_interval", &h.LBTryInterval),
		{Name: "queue", Min: 2, Max: 2, Values: "how many sessions wait and how long one waits, such as 100 5s", Set: func(args []string) error {
			n, err := caddyfile.ParseCount(args[0], 1, upstream.MaxQueue)
			if err != nil {
				return err
			}
			d, err := caddyfile.ParseDuration(args[1])
			if err == nil && d == 0 {
				err = errNoTime(args[1])
			}
			h.Queue = &Queue{n, d}
			return err
		}},
	}
}

// applyWait sets what sessions wait for, and refuses values that can't work.
func (h *Handler) applyWait() error {
	if h.Queue != nil {
		if h.Queue.Count < 1 || h.Queue.Count > upstream.MaxQueue {
			return fmt.Errorf(`queue: count: "%d": expected a whole number from 1 to %d`, h.Queue.Count, upstream.MaxQueue)
		}
		if h.Queue.Duration <= 0 {
			return fmt.Errorf("queue: duration: %w", errNoTime(time.Duration(h.Queue.Duration).String()))
		}
	}
	if h.LBTryInterval != nil && *h.LBTryInterval == 0 {
		return fmt.Errorf("lb_try_interval: %w", errNoTime("0s"))
	}
	h.tryInterval = defaultTryInterval
	override(&h.tryDuration, h.LBTryDuration)
	override(&h.tryInterval, h.LBTryInterval)
	return h.checkWait()
}

// checkWait refuses options that have no effect without another one.
func (h *Handler) checkWait() error {
	limited := func(t Target) bool { return t.MaxConnections != nil && *t.MaxConnections > 0 }
	if h.Queue != nil && len(h.Dynamic) == 0 && !slices.ContainsFunc(h.Upstreams, limited) {
		return fmt.Errorf(`queue: "%d %v": %w`, h.Queue.Count, time.Duration(h.Queue.Duration), errNoLimit)
	}
	if h.LBTryInterval != nil && (h.LBTryDuration == nil || *h.LBTryDuration == 0) {
		return fmt.Errorf(`lb_try_interval: "%v": %w`, time.Duration(*h.LBTryInterval), errNoDuration)
	}
	return nil
}
