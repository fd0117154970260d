package redis

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// holding is how many of a key this node holds, and the number of that statement: a higher one is later.
type holding struct{ count, number int64 }

// held is a key that this node holds some of, or has not yet told Redis that it holds none.
type held struct {
	holding
	told  time.Time // when Redis was last told
	dirty bool      // is among the news: Redis may know another count
}

// counts are what this node holds. They are right whatever happens to Redis, which only adds up what its
// nodes say. There is an entry for each key that a living session is counted for, and, while Redis
// answers, for those that it has not been told of yet.
type counts struct {
	mu     sync.Mutex
	node   string // what this node calls itself
	number int64  // of the last statement
	keys   map[bucket.Key]*held
	news   []bucket.Key
	silent bool // Redis can't be told: nothing is kept for it
}

func (c *counts) init() {
	c.keys = make(map[bucket.Key]*held)
	c.silent = true
}

func (c *counts) nodeName() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

// rename gives the node another name, under which it has said nothing yet, and has it tell all that it holds.
func (c *counts) rename() (old string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, c.node = c.node, fmt.Sprintf("%016x", rand.Uint64())
	c.silent = false
	c.allNews()
	return old
}

// hush says that Redis can't be told anything before the next rename.
func (c *counts) hush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent = true
	c.allNews()
}

// forgotten says that Redis knows nothing of what this node holds: somebody has emptied it.
func (c *counts) forgotten() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allNews()
}

// allNews makes all that is held news.
func (c *counts) allNews() {
	c.news = nil
	for key, h := range c.keys {
		h.dirty = false
		if h.count == 0 {
			delete(c.keys, key)
			continue
		}
		c.toTell(key, h)
	}
}

func (c *counts) toTell(key bucket.Key, h *held) {
	if !h.dirty && !c.silent {
		h.dirty = true
		c.news = append(c.news, key)
	}
}

// add counts the requests of a count. It returns what is held of each with that, nil if there are none.
func (c *counts) add(requests []bucket.Request) (all []holding) {
	if !anyCount(requests) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all = make([]holding, len(requests))
	now := time.Now()
	for i := range requests {
		if requests[i].Limit.Kind() != bucket.Count {
			continue
		}
		h := c.keys[requests[i].Key]
		if h == nil {
			h = new(held)
			c.keys[requests[i].Key] = h
		}
		c.number++
		h.count++
		h.number, h.told = c.number, now // whoever adds is about to tell
		all[i] = h.holding
	}
	return all
}

// undo takes back what add has counted, of which Redis has said that it did not take it in. It is no news
// unless another statement was made meanwhile, which included it.
func (c *counts) undo(requests []bucket.Request, said []holding) {
	for i := range said {
		if said[i].count > 0 {
			c.less(requests[i].Key, said[i].number)
		}
	}
}

// release takes back what add has counted.
func (c *counts) release(requests []bucket.Request) {
	for i := range requests {
		if requests[i].Limit.Kind() == bucket.Count {
			c.less(requests[i].Key, 0)
		}
	}
}

// less counts one less of a key. It is news unless its last statement was the one with this number.
func (c *counts) less(key bucket.Key, number int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.keys[key]
	if h == nil || h.count == 0 {
		return
	}
	if h.number != number {
		c.toTell(key, h)
	}
	c.number++
	h.count--
	h.number = c.number
	if h.count == 0 && !h.dirty {
		delete(c.keys, key)
	}
}

func anyCount(requests []bucket.Request) bool {
	for i := range requests {
		if requests[i].Limit.Kind() == bucket.Count {
			return true
		}
	}
	return false
}

// item is what Redis is to be told of a key.
type item struct {
	key bucket.Key
	holding
}

func (c *counts) anyNews() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.news) > 0
}

// take returns up to so much news, and who says so.
func (c *counts) take(most int) (node string, all []item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for len(c.news) > 0 && len(all) < most {
		key := c.news[len(c.news)-1]
		c.news = c.news[:len(c.news)-1]
		h := c.keys[key]
		if h == nil || !h.dirty {
			continue // was silently given back
		}
		h.dirty, h.told = false, now
		all = append(all, item{key, h.holding})
	}
	return c.node, all
}

// told is called with what Redis has taken in: keys of which nothing is held are forgotten.
func (c *counts) told(all []item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range all {
		if h := c.keys[n.key]; h != nil && h.count == 0 && !h.dirty {
			delete(c.keys, n.key)
		}
	}
}

// missed is called with what Redis has not taken in.
func (c *counts) missed(all []item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range all {
		if h := c.keys[n.key]; h != nil {
			c.toTell(n.key, h)
		}
	}
}

// refresh makes news of what Redis was told so long ago that it would soon expire. It reports whether anything is held.
func (c *counts) refresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for key, h := range c.keys {
		if now.Sub(h.told) > countLife/3 {
			c.toTell(key, h)
		}
	}
	return len(c.keys) > 0
}

// Held is how many keys this node holds some of.
func (s *Store) Held() int {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	n := 0
	for _, h := range s.counts.keys {
		if h.count > 0 {
			n++
		}
	}
	return n
}

// Nearest returns how much of these limits each key has taken that this node holds some of.
func (s *Store) Nearest(limits []*bucket.Limit) (all []bucket.Usage) {
	byID := make(map[uint16]*bucket.Limit, len(limits))
	for _, limit := range limits {
		byID[limit.ID()] = limit
	}
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	for key, h := range s.counts.keys {
		if limit := byID[key.LimitID()]; limit != nil && h.count > 0 {
			all = append(all, bucket.Usage{Limit: limit, Key: key, Used: float64(h.count) / float64(limit.Max())})
		}
	}
	return all
}
