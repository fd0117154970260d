package bucket

import (
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"
)

// Memory is a Store in this process. It has room for so many keys and takes less than 96 bytes for each.
//
// It forgets only what makes no difference: a bucket that is full again, a count of zero. Where it has no room
// left, a new key shares a bucket with others of its limit: the keys that have come too late are dealt out to
// 2,048 buckets by their hash. So a key that is being limited stays limited, whoever comes; new keys are held
// to no more than one client may have, together with those that they share with; and as soon as there is
// room, a key goes on in a bucket of its own with what its shared one had left.
type Memory struct {
	max    atomic.Int64
	keys   atomic.Int64 // without shared ones
	seed   maphash.Seed
	shards atomic.Pointer[[shardCount]shard] // nil before the first decision: thousands of handlers may never make one
}

// NewMemory returns a store with room for so many keys.
func NewMemory(maxKeys int) *Memory {
	m := &Memory{seed: maphash.MakeSeed()}
	m.SetMax(maxKeys)
	return m
}

// SetMax makes room for so many keys. Where there are more, none is forgotten for it.
func (m *Memory) SetMax(maxKeys int) { m.max.Store(int64(maxKeys)) }

// Decide implements [Store].
func (m *Memory) Decide(now time.Duration, requests []Request) Decision {
	if len(requests) == 1 {
		return m.decideOne(now, &requests[0])
	}
	var hashes [MaxRequests]uint64
	var places [MaxRequests]place
	locked := m.lock(requests, &hashes)
	defer m.unlock(locked)

	var d Decision
	for i := range requests {
		limit, s := requests[i].Limit, m.shard(hashes[i])
		places[i] = s.lookFor(m, now, &requests[i], hashes[i])
		v := limit.take(now, places[i].value)
		places[i].value = v.value
		v.reserve(&requests[i])
		d.add(i, limit, v)
	}
	if d.Refused {
		return d
	}
	for i := range requests {
		m.shard(hashes[i]).store(m, now, places[i])
	}
	return d
}

// decideOne is Decide without what several requests need.
func (m *Memory) decideOne(now time.Duration, request *Request) (d Decision) {
	hash := m.hash(request.Key)
	s := m.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot := s.find(hash); slot != nil {
		slot.value = request.Limit.settle(now, slot.value)
		v := request.Limit.take(now, slot.value)
		if d.add(0, request.Limit, v); !d.Refused {
			slot.value = v.value
			v.reserve(request)
		}
		return d
	}
	at := s.lookFor(m, now, request, hash)
	v := request.Limit.take(now, at.value)
	if d.add(0, request.Limit, v); !d.Refused {
		at.value = v.value
		v.reserve(request)
		s.store(m, now, at)
	}
	return d
}

// add takes the verdict of one more limit in.
func (d *Decision) add(i int, limit *Limit, v verdict) {
	if v.retry > 0 {
		if !d.Refused {
			d.Refused, d.Limit, d.Delay = true, i, 0
		}
		if limit.kind != Count {
			d.Retry = max(d.Retry, v.retry)
		}
		return
	}
	if !d.Refused && v.delay > d.Delay {
		d.Limit, d.Delay = i, v.delay
	}
}

// Release implements [Store].
func (m *Memory) Release(now time.Duration, requests []Request) {
	for i := range requests {
		if requests[i].Limit.kind != Count {
			continue
		}
		hash := m.hash(requests[i].Key)
		s := m.shard(hash)
		s.mu.Lock()
		if at := s.look(m, now, requests[i].Key, hash); at.value > 0 {
			at.value--
			s.store(m, now, at)
		}
		s.mu.Unlock()
	}
}

// Cancel implements [Store].
func (m *Memory) Cancel(now time.Duration, requests []Request, done func(kept []Request)) {
	var kept []Request
	for i := range requests {
		reserved := requests[i].Reserved
		hash := m.hash(requests[i].Key)
		s := m.shard(hash)
		s.mu.Lock()
		if at := s.look(m, now, requests[i].Key, hash); at.value == reserved.Mark {
			at.value -= value(requests[i].Limit.interval)
			s.store(m, now, at)
		} else {
			kept = append(kept, requests[i])
		}
		s.mu.Unlock()
	}
	done(kept)
}

// Charge adds bytes that have moved to the bucket of a limit in bytes. It returns the time until which the sender has to
// pause; a time in the past is no pause.
func (m *Memory) Charge(now time.Duration, request *Request, n int) (until time.Duration) {
	hash := m.hash(request.Key)
	s := m.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.lookFor(m, now, request, hash)
	at.value, until = request.Limit.charge(now, at.value, n)
	if n > 0 {
		s.store(m, now, at)
	}
	return until
}

// Force charges what another store has admitted, even if this one would refuse it.
func (m *Memory) Force(now time.Duration, requests []Request) {
	for i := range requests {
		limit := requests[i].Limit
		if limit.kind != Events {
			continue
		}
		hash := m.hash(requests[i].Key)
		s := m.shard(hash)
		s.mu.Lock()
		at := s.lookFor(m, now, &requests[i], hash)
		at.value = value(add(now+limit.debt(now, at.value), limit.interval))
		s.store(m, now, at)
		s.mu.Unlock()
	}
}

// Slow is called when a limit gives way to one with the same ID. What its keys have used remains used: where the new one
// is slower, their buckets take longer to fill in the same proportion. Where it is quicker, nobody waits longer
// than the new one can make him anyway.
func (m *Memory) Slow(now time.Duration, from, to *Limit) {
	factor := to.cost() / from.cost()
	if from.kind != to.kind || to.kind == Count || factor <= 1 {
		return
	}
	shards := m.shards.Load()
	if shards == nil {
		return
	}
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		for j := range s.slots {
			if debt := time.Duration(s.slots[j].value) - now; s.keys[j].LimitID() == to.id && debt > 0 {
				slower := min(float64(debt)*factor, float64(to.tolerance+to.maxDelay))
				s.slots[j].value = value(now + time.Duration(slower))
			}
		}
		s.mu.Unlock()
	}
}

// Len sweeps out what makes no difference and returns how many keys are left.
func (m *Memory) Len(now time.Duration) int {
	n := 0
	shards := m.shards.Load()
	if shards == nil {
		return 0
	}
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		s.sweep(m, now)
		n += s.used
		s.mu.Unlock()
	}
	return n
}

// Usage is how much of a limit a key has taken.
type Usage struct {
	Limit *Limit
	Key   Key
	// Used is 1 at the limit, and 0 for a bucket that is full.
	Used float64
}

// Nearest returns the n keys that are nearest to their limits, the nearest first. Keys of other limits than
// these are left out.
func (m *Memory) Nearest(now time.Duration, limits []*Limit, n int) []Usage {
	byID := make(map[uint16]*Limit, len(limits))
	for _, limit := range limits {
		byID[limit.id] = limit
	}
	var top []Usage
	byUse := func(a, b Usage) int {
		switch {
		case a.Used > b.Used:
			return -1
		case a.Used < b.Used:
			return 1
		}
		return 0
	}
	shards := m.shards.Load()
	if shards == nil {
		return nil
	}
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		for j := range s.slots {
			limit := byID[s.keys[j].LimitID()]
			if s.slots[j].hash == 0 || s.idle(j, now) || limit == nil {
				continue
			}
			top = append(top, Usage{limit, s.keys[j], limit.used(now, s.slots[j].value)})
		}
		s.mu.Unlock()
		slices.SortFunc(top, byUse)
		top = top[:min(len(top), n)]
	}
	return top
}

// lock locks the shards of all requests, in one order so that no two callers wait for each other.
func (m *Memory) lock(requests []Request, hashes *[MaxRequests]uint64) (locked [MaxRequests + 1]uint8) {
	n := 0
	for i := range requests {
		hashes[i] = m.hash(requests[i].Key)
		index := shardIndex(hashes[i])
		at, found := slices.BinarySearch(locked[1:n+1], index)
		if found {
			continue
		}
		copy(locked[at+2:], locked[at+1:n+1])
		locked[at+1] = index
		n++
	}
	locked[0] = uint8(n)
	for _, index := range locked[1 : n+1] {
		m.made()[index].mu.Lock()
	}
	return locked
}

func (m *Memory) unlock(locked [MaxRequests + 1]uint8) {
	for _, index := range locked[1 : locked[0]+1] {
		m.made()[index].mu.Unlock()
	}
}

// hash is never zero.
func (m *Memory) hash(key Key) uint64 { return maphash.Comparable(m.seed, key) | 1 }

func (m *Memory) shard(hash uint64) *shard { return &m.made()[shardIndex(hash)] }

// made returns the shards, and makes them for the first decision.
func (m *Memory) made() *[shardCount]shard {
	if shards := m.shards.Load(); shards != nil {
		return shards
	}
	m.shards.CompareAndSwap(nil, new([shardCount]shard))
	return m.shards.Load()
}
