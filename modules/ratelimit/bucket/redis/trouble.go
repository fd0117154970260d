package redis

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// trouble is why Redis is not used, and what was said about it.
type trouble struct {
	mu    sync.Mutex
	since time.Time              // zero while Redis is used
	told  bool                   // since then
	last  map[string]tellingTime // of each reason
	bad   map[string]bool        // keys that were told of
}

// tellingTime is when a reason was told last, and how long it is not told again from then on.
type tellingTime struct {
	at   time.Time
	wait time.Duration
}

const (
	// Where Redis works now and then, a reason is not told again for minWait, and each time that it comes back soon after, for
	// twice as long as before, up to maxWait.
	minWait, maxWait = time.Second, time.Minute
	// So many reasons and keys are remembered.
	maxTold = 64
)

// take reports whether a reason is to be told.
func (t *trouble) take(reason string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.since.IsZero() {
		t.since = now
	}
	wait := minWait
	if last, known := t.last[reason]; known {
		pause := now.Sub(last.at)
		if !last.at.Before(t.since) || pause < last.wait {
			return false
		}
		if pause < 2*last.wait {
			wait = min(2*last.wait, maxWait)
		}
	}
	if t.last == nil || len(t.last) >= maxTold {
		t.last = make(map[string]tellingTime)
	}
	t.last[reason], t.told = tellingTime{now, wait}, true
	return true
}

// end says that Redis is used, and reports whether somebody was told that it is not.
func (t *trouble) end() (told bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	told = t.told
	t.since, t.told = time.Time{}, false
	return told
}

// takeKey reports whether a key is to be told of. Where there are too many, no more are.
func (t *trouble) takeKey(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bad[key] || len(t.bad) >= maxTold {
		return false
	}
	if t.bad == nil {
		t.bad = make(map[string]bool)
	}
	t.bad[key] = true
	return true
}

// report tells why Redis is not used.
func (h *health) report(err error) {
	if errors.Is(err, rueidis.ErrClosing) { // by us
		return
	}
	if reason := h.store.reason(err); h.trouble.take(reason) && h.store.options.Changed != nil {
		h.store.options.Changed(errors.New(reason))
	}
}

// over tells that Redis is used again, if somebody knows that it was not.
func (h *health) over() {
	if h.trouble.end() && h.store.options.Changed != nil {
		h.store.options.Changed(nil)
	}
}

// suspect has the keys of requests looked at if they are why a decision failed.
func (h *health) suspect(err error, requests []bucket.Request) {
	if !ofOneKey(err) || h.suspects.Load() != nil {
		return
	}
	suspects := append([]bucket.Request(nil), requests...)
	if h.suspects.CompareAndSwap(nil, &suspects) {
		h.wake()
	}
}

// examine finds the key that holds something else. Without the set of nodes nothing can be shared: then Redis is not used
// until somebody has removed what is there.
func (h *health) examine() {
	suspects, client := h.suspects.Load(), h.store.client.get()
	if suspects == nil || client == nil {
		return
	}
	defer h.suspects.Store(nil)
	ctx, cancel := h.store.timeout()
	defer cancel()
	holds := func(key string) string {
		kind, err := client.Do(ctx, client.B().Type().Key(key).Build()).ToString()
		if err != nil {
			return ""
		}
		return kind
	}
	nodes := h.store.nodesKey()
	if kind := holds(nodes); kind != "" && kind != "none" && kind != "zset" {
		h.trip(foreign(nodes))
		return
	}
	for _, request := range *suspects {
		key, want := h.store.key(request.Key), "string"
		if request.Limit.Kind() == bucket.Count {
			want = "hash"
		}
		switch kind := holds(key); {
		case kind == "", kind == "none":
		case kind != want:
			h.store.badKey(key)
		case len(*suspects) == 1:
			h.store.badKey(key) // of the right kind, but in another form
		}
	}
}

func (s *Store) badKey(key string) {
	if s.health.trouble.takeKey(key) && s.options.BadKey != nil {
		s.options.BadKey(foreign(key))
	}
}

// foreign is the error of a key that holds what Portgate has not put there.
func foreign(key string) error {
	return fmt.Errorf("key %q: expected what Portgate keeps there, but something else is; delete the key, or choose another prefix", key)
}
