package ratelimit

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/state"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket/redis"
)

// now returns the time of all buckets. Setting the system's clock does not change it.
func now() time.Duration { return time.Since(epoch) }

var epoch = time.Now()

// kept are the buckets of all handlers, which outlive reloads.
var kept = state.NewPool[string, *buckets]()

// buckets are the state of one handler and of the handlers that replace it in later configs.
type buckets struct {
	name     string // of the handler
	memory   *bucket.Memory
	redis    *redis.Store // nil: there is no other store than the memory
	queue    *queue
	degraded *degraded.Part // where Redis is not used
	values   meter.Values   // whose series the metrics have
	log      atomic.Pointer[zap.Logger]

	mu     sync.Mutex
	ids    map[string]uint16 // of limits, by what does not change with their numbers
	taken  map[uint16]bool   // of ids
	limits map[uint16]limit  // as the last handler has them
	users  list.List         // of *settings, in the order in which they came
}

// store returns the store that decides about connections.
func (b *buckets) store() bucket.Store {
	if b.redis != nil {
		return b.redis
	}
	return b.memory
}

// id returns the number of a limit: a hash of its signature, so that machines that share a Redis agree, whatever limits they
// had before. When two limits have the same hash (once in 500 configs with 16 limits), the second one gets the next free
// number.
func (b *buckets) id(signature string) uint16 {
	b.mu.Lock()
	defer b.mu.Unlock()
	id, known := b.ids[signature]
	if known {
		return id
	}
	sum := sha256.Sum256([]byte(signature))
	id = binary.BigEndian.Uint16(sum[:])
	for b.taken[id] {
		id++
	}
	b.ids[signature], b.taken[id] = id, true
	return id
}

// settings are the options of a handler that concern its buckets.
type settings struct {
	limits  limits
	log     *zap.Logger
	maxKeys int
	redis   redis.Options
	used    *list.Element // among the users of the buckets
}

// use applies the settings of one more handler.
func (b *buckets) use(s *settings) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.used = b.users.PushBack(s)
	b.apply(s)
}

// leave removes the settings of a handler, and applies those of the youngest handler that is left. When a config was
// rejected, that is the handler of the running config.
func (b *buckets) leave(s *settings) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.used != nil {
		youngest := b.users.Back() == s.used
		b.users.Remove(s.used)
		if s.used = nil; youngest && b.users.Len() > 0 {
			b.apply(b.users.Back().Value.(*settings))
		}
	}
	if len(b.ids) > keptIDs {
		b.forget()
	}
}

// keptIDs is how many limits keep their numbers, also those that no handler has at the moment.
const keptIDs = 4096

// forget frees the numbers of limits that no handler has. The caller holds mu.
func (b *buckets) forget() {
	used := make(map[uint16]bool)
	for user := b.users.Front(); user != nil; user = user.Next() {
		for _, one := range user.Value.(*settings).limits.all() {
			used[one.ID()] = true
		}
	}
	maps.DeleteFunc(b.ids, func(_ string, id uint16) bool { return !used[id] })
	maps.DeleteFunc(b.limits, func(id uint16, _ limit) bool { return !used[id] })
	b.taken = used
}

func (b *buckets) apply(s *settings) {
	b.log.Store(s.log)
	b.memory.SetMax(s.maxKeys)
	if b.redis != nil {
		b.redis.Set(s.redis.Timeout, s.redis.OnError)
	}
	for _, one := range s.limits.all() {
		if before, known := b.limits[one.ID()]; known {
			b.memory.Slow(now(), before.Limit, one.Limit)
		}
		b.limits[one.ID()] = one
	}
}

// Destruct closes the store. When sessions end later, what they release has no effect.
func (b *buckets) Destruct() error {
	if b.redis != nil {
		b.redis.Close()
	}
	b.degraded.Close()
	b.values.Release()
	return nil
}

// acquire returns the handler's buckets, and creates them if they do not exist yet.
func (h *Handler) acquire(ctx caddy.Context, at *placement.Finding) (*state.Ref[*buckets], error) {
	identity := h.identity(at)
	options := redis.Options{}
	if h.onRedis() {
		var err error
		if options, err = h.redisOptions(identity); err != nil {
			return nil, fmt.Errorf("store: redis: %w", err)
		}
		h.settings.redis = options
		identity = options.URL + " " + options.Prefix + " " + options.Name
	}
	ref, err := kept.Acquire(identity, func() (*buckets, error) {
		b := &buckets{
			name:   h.Name,
			memory: bucket.NewMemory(h.maxKeys),
			queue:  newQueue(now),
			ids:    make(map[string]uint16),
			taken:  make(map[uint16]bool),
			limits: make(map[uint16]limit),
		}
		b.values.Hold("name", b.name)
		b.log.Store(logqueue.Logger(ctx))
		if !h.onRedis() {
			return b, nil
		}
		b.degraded = degraded.New("store")
		options.Observe = b.observe
		options.Changed = b.changed
		options.BadKey = b.badKey
		collectors.storeErrors.WithLabelValues(b.name) // zero is shown, too
		store, err := redis.New(options, b.memory)
		if err != nil {
			b.degraded.Close()
			b.values.Release()
			return nil, fmt.Errorf("store: redis: %w", h.Store.quote(err))
		}
		b.redis = store
		return b, nil
	})
	return ref, err
}

// identity returns the name of the handler's buckets. Handlers share buckets by name, else by position (memory) or by
// limits (Redis, where each machine may have another config).
func (h *Handler) identity(at *placement.Finding) string {
	if h.Name != "" {
		return "name " + h.Name
	}
	if !h.onRedis() {
		if position, _ := placement.Shared(at, positionOf); position != "" {
			return string(position)
		}
		return "alike " + at.Canonical() // in front of an HTTP site
	}
	alike, _ := json.Marshal([]any{h.Connections, h.Concurrent, h.ipv6Prefix})
	sum := sha256.Sum256(alike)
	return hex.EncodeToString(sum[:8])
}

// position stands for all places of a handler. It is short, because the handler may have thousands.
type position string

// positionOf returns an empty position for a handler in front of an HTTP site.
func positionOf(f *placement.Finding) (position, error) {
	var places []string
	for _, p := range f.Places() {
		places = append(places, p.Network+"/"+p.Listener+" "+p.Path)
	}
	if len(places) == 0 {
		return "", nil
	}
	slices.Sort(places)
	sum := sha256.Sum256([]byte(strings.Join(places, ", ")))
	return position("at " + hex.EncodeToString(sum[:])), nil
}

func (h *Handler) onRedis() bool { return h.Store != nil && h.Store.Type == "redis" }

func (h *Handler) redisOptions(identity string) (redis.Options, error) {
	url, err := h.Store.expand()
	options := redis.Options{
		URL:     url,
		Timeout: defaultTimeout,
		Prefix:  defaultPrefix,
		Name:    strings.Replace(identity, "name ", "name:", 1),
		OnError: redis.Local,
	}
	if h.Store.Timeout != nil {
		options.Timeout = time.Duration(*h.Store.Timeout)
	}
	if h.Store.Prefix != "" {
		options.Prefix = h.Store.Prefix
	}
	if h.Store.OnError != "" {
		options.OnError = redis.Policy(h.Store.OnError)
	}
	return options, err
}

// observe counts a call of Redis.
func (b *buckets) observe(took time.Duration, err error) {
	collectors.storeDuration.WithLabelValues(b.name).Observe(took.Seconds())
	if err != nil {
		collectors.storeErrors.WithLabelValues(b.name).Inc()
	}
}

// changed logs why Redis is not used, each reason once, and that it is used again.
func (b *buckets) changed(err error) {
	log, name := b.log.Load(), zap.String("name", b.name)
	const unused = "limits are not shared, because redis can't be used; on_error decides"
	switch {
	case err == nil:
		b.degraded.End(log, "redis works again, limits are shared", name)
	case b.degraded.Is():
		log.Warn(unused, name, zap.Error(err))
	default:
		b.degraded.Begin(log, unused, name, zap.Error(err))
	}
}

// badKey logs that one key has to do without Redis.
func (b *buckets) badKey(err error) {
	b.log.Load().Warn("a limit is not shared for one key; on_error decides", zap.String("name", b.name), zap.Error(err))
}

// quiet limits log entries of one kind to one a second.
type quiet struct {
	mu      sync.Mutex
	next    time.Time
	skipped int64
}

// take reports whether an entry may be logged now, and how many were skipped since the last one.
func (q *quiet) take() (skipped int64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := time.Now()
	if t.Before(q.next) {
		q.skipped++
		return 0, false
	}
	skipped, q.skipped = q.skipped, 0
	q.next = t.Add(time.Second)
	return skipped, true
}
