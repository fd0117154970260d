// Package redis is a [bucket.Store] that several machines share.
//
// A decision is one call of one script in Redis, in which all its limits are asked and charged, or none is.
// It takes one round trip, by Redis's own clock, and those that are under way at the same time share the
// connection (pipelining). Keys expire by themselves when they make no difference any more.
//
// Where Redis fails, [Options.OnError] decides. A Redis that keeps failing is left alone until it answers
// again, so that it delays nobody.
package redis

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// Policy says what is decided where Redis can't be asked.
type Policy string

// The policies.
const (
	Local Policy = "local" // by this machine alone, with the same limits
	Allow Policy = "allow" // everything is admitted
	Deny  Policy = "deny"  // everything is refused
)

// Options of a store.
type Options struct {
	// URL names the server: see [Parse].
	URL string
	// Timeout bounds one decision.
	Timeout time.Duration
	// Prefix begins every key. It must have no braces.
	Prefix string
	// Name follows it. Stores with the same prefix and name share their limits. It must not be empty, nor have braces.
	Name    string
	OnError Policy

	// Observe is told of each call of Redis. It may be nil.
	Observe func(took time.Duration, err error)
	// Changed is told why Redis is not used, once for each reason, and then, with nil, that it is used again. No error contains
	// a password. It may be nil.
	Changed func(err error)
	// BadKey is told of a key, other than those that the store needs for everything, which holds what Portgate has not put
	// there, once for each key. It may be nil.
	BadKey func(err error)
}

const (
	// leaseTime is how long what a node holds is counted after it was last heard of.
	leaseTime = 6 * time.Second
	// countLife is how long the key of a count is kept after it was last told of.
	countLife = 10 * time.Minute
)

// Store is a store in Redis. It must be closed.
type Store struct {
	options Options // but for Timeout and OnError
	keyHead string
	policy  atomic.Pointer[policy]
	client  clients
	memory  *bucket.Memory // decides when Redis can't, and is kept up to date for that
	counts  counts
	health  health

	cancelled cancelled
}

// policy is what may change while a store is in use.
type policy struct {
	timeout time.Duration
	onError Policy
}

// New returns a store. It does not wait for Redis: until that has answered, OnError decides.
func New(options Options, memory *bucket.Memory) (*Store, error) {
	parsed, err := Parse(options.URL)
	if err != nil {
		return nil, err
	}
	s := &Store{options: options, keyHead: options.keyHead(), memory: memory, client: clients{options: parsed}}
	s.Set(options.Timeout, options.OnError)
	s.counts.init()
	s.health.init(s)
	return s, nil
}

// Set changes what decisions are held to from now on.
func (s *Store) Set(timeout time.Duration, onError Policy) { s.policy.Store(&policy{timeout, onError}) }

// timeout ends with the time that a call of Redis may take.
func (s *Store) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), s.policy.Load().timeout)
}

// Close ends the store, without waiting for Redis. What this node holds is then no longer counted. From then on OnError
// decides.
func (s *Store) Close() { s.health.end() }

// Open reports whether the breaker is open: Redis is not asked.
func (s *Store) Open() bool { return s.health.open.Load() }

// Decide implements [bucket.Store].
func (s *Store) Decide(now time.Duration, requests []bucket.Request) bucket.Decision {
	held := s.counts.add(requests)
	if s.Open() {
		return s.fallback(now, requests, held)
	}
	d, err := s.ask(requests, held)
	if err != nil {
		s.health.suspect(err, requests)
		s.health.failed(err)
		return s.fallback(now, requests, held)
	}
	s.health.succeeded()
	if d.Refused {
		s.counts.undo(requests, held)
	} else {
		s.memory.Force(now, requests)
	}
	return d
}

// Release implements [bucket.Store]. Redis is told soon.
func (s *Store) Release(_ time.Duration, requests []bucket.Request) {
	s.counts.release(requests)
	s.health.wake()
}

// fallback decides without Redis. The requests have been added to the counts.
func (s *Store) fallback(now time.Duration, requests []bucket.Request, held []holding) bucket.Decision {
	onError := s.policy.Load().onError
	d := bucket.Decision{Failed: true, Refused: onError == Deny}
	if onError == Local {
		d = s.local(now, requests, held)
	}
	if d.Refused {
		s.counts.release(requests)
	}
	return d
}

func (s *Store) local(now time.Duration, requests []bucket.Request, held []holding) bucket.Decision {
	var rates []bucket.Request
	var index []int // of the rates among all
	full := -1
	for i := range requests {
		if requests[i].Limit.Kind() != bucket.Count {
			rates, index = append(rates, requests[i]), append(index, i)
		} else if full < 0 && held[i].count > requests[i].Limit.Max() {
			full = i
		}
	}
	if full >= 0 {
		return bucket.Decision{Refused: true, Limit: full}
	}
	if len(rates) == 0 {
		return bucket.Decision{}
	}
	d := s.memory.Decide(now, rates)
	d.Limit = index[d.Limit]
	for i := range rates {
		requests[index[i]].Reserved = rates[i].Reserved
	}
	return d
}

// clients makes the client when Redis can be reached for the first time. From then on the client finds its
// servers again by itself, unless they say that others are to be asked.
type clients struct {
	options rueidis.ClientOption

	mu     sync.Mutex
	client rueidis.Client
	closed bool
}

// get returns the client, nil where there is none yet.
func (c *clients) get() rueidis.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client
}

// connect is called by one goroutine.
func (c *clients) connect() (rueidis.Client, error) {
	if client := c.get(); client != nil {
		return client, nil
	}
	client, err := rueidis.NewClient(c.options)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		client.Close()
		return nil, rueidis.ErrClosing
	}
	c.client = client
	return client, nil
}

// drop closes the client, so that the next connect makes another one.
func (c *clients) drop() {
	c.mu.Lock()
	client := c.client
	c.client = nil
	c.mu.Unlock()
	if client != nil {
		client.Close()
	}
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.client != nil {
		c.client.Close()
	}
}

// exec calls the script.
func (s *Store) exec(ctx context.Context, client rueidis.Client, keys, args []string) rueidis.RedisResult {
	start := time.Now()
	result := script.Exec(ctx, client, keys, args)
	s.observe(start, result.Error())
	return result
}

func (s *Store) observe(start time.Time, err error) {
	if s.options.Observe != nil {
		s.options.Observe(time.Since(start), err)
	}
}

// ask has Redis decide.
func (s *Store) ask(requests []bucket.Request, held []holding) (bucket.Decision, error) {
	client := s.client.get()
	if client == nil {
		return bucket.Decision{}, rueidis.ErrClosing
	}
	ctx, cancel := s.timeout()
	defer cancel()
	keys, args := s.question(requests, held)
	answer, err := s.exec(ctx, client, keys, args).AsIntSlice()
	if err != nil {
		return bucket.Decision{}, err
	}
	if n := len(answer); n != 5 && n != 5+3*len(requests) || answer[0] < 0 || answer[0] > int64(len(requests)) || answer[1] > int64(len(requests)) {
		return bucket.Decision{}, fmt.Errorf("expected 5 numbers from Redis, or 3 more for each request: %v", answer)
	}
	if answer[4] == 0 {
		s.counts.forgotten()
		s.health.wake()
	}
	if answer[0] > 0 {
		return bucket.Decision{Refused: true, Limit: int(answer[0]) - 1, Retry: time.Duration(answer[3])}, nil
	}
	for i, rest := 0, answer[5:]; len(rest) > 0; i, rest = i+1, rest[3:] {
		if rest[0] > 0 {
			requests[i].Reserved = bucket.Reservation{
				Delay: time.Duration(rest[0]), Mark: rest[1]*int64(time.Second) + rest[2], Shared: true,
			}
		}
	}
	return bucket.Decision{Limit: int(answer[1]) - 1, Delay: time.Duration(answer[2])}, nil
}
