package bucket

import (
	"math/bits"
	"sync"
	"time"
)

const (
	// shardCount is how many parts a store has, each with a lock of its own. An index of them is a byte.
	shardCount = 256

	// sharedBuckets is how many buckets a shard has for the keys of one limit that it has no room for.
	sharedBuckets = 8

	minSlots = 8

	// At the cap, a shard that has found nothing to forget does not look again before this.
	lookAgain = 100 * time.Millisecond
)

// shard is a table with open addressing and linear probing (Knuth, volume 3, 6.4, algorithms L and R).
//
// What a decision reads lies close together, 16 bytes for a key, because waiting for memory is most of what it
// costs: the slots of a million keys fit into a processor's cache. The keys are needed only to say whose
// a bucket is. Neither has a pointer, so the garbage collector does not look into them.
//
// The hash stands for the key. It has 64 bits and a secret seed: that two of a million keys have the same
// happens once in 40 million stores, and can't be brought about.
type shard struct {
	mu     sync.Mutex
	slots  []slot
	keys   []Key         // of the slots
	used   int           // slots that are taken
	shared int           // those of them with a shared key
	lookAt time.Duration // when to look next for what can be forgotten

	_ [48]byte // fills two cache lines
}

// slot is empty where its hash is zero, which no key has.
type slot struct {
	hash  uint64
	value value
}

func shardIndex(hash uint64) uint8 { return uint8(hash >> 56) }

// home is where the search for a hash begins. The bits that have chosen the shard are left out.
func (s *shard) home(hash uint64) int {
	home, _ := bits.Mul64(hash<<8, uint64(len(s.slots)))
	return int(home)
}

func (s *shard) after(i int) int {
	if i++; i == len(s.slots) {
		return 0
	}
	return i
}

// find returns the slot of a hash, nil where there is none.
func (s *shard) find(hash uint64) *slot {
	if s.used == 0 {
		return nil
	}
	for i := s.home(hash); ; i = s.after(i) {
		switch slot := &s.slots[i]; slot.hash {
		case hash:
			return slot
		case 0:
			return nil
		}
	}
}

// idle says that the bucket in slot i is as that of a key that was never seen.
func (s *shard) idle(i int, now time.Duration) bool {
	if s.keys[i].isCount() {
		return s.slots[i].value == 0
	}
	return time.Duration(s.slots[i].value) <= now
}

// place is where a bucket is kept, and what is in it.
type place struct {
	key Key
	slot
}

// look returns the bucket that counts for key: its own, or where it has none and there is no room, a shared
// one. A key that has been counted in a shared bucket stays there until that is empty, so that Release finds it.
func (s *shard) look(m *Memory, now time.Duration, key Key, hash uint64) place {
	if slot := s.find(hash); slot != nil {
		return place{key, *slot}
	}
	own := place{key, slot{hash: hash}}
	room := s.makeRoom(m, now)
	if room && s.shared == 0 {
		return own
	}
	shared := place{key: sharedKey(key, hash)}
	shared.hash = m.hash(shared.key)
	if slot := s.find(shared.hash); slot != nil {
		shared.value = slot.value
	}
	if room && (!key.isCount() || shared.value == 0) {
		own.value = shared.value
		return own
	}
	return shared
}

// lookFor is look with the value settled, which it is for good: else it would never come down.
func (s *shard) lookFor(m *Memory, now time.Duration, request *Request, hash uint64) place {
	at := s.look(m, now, request.Key, hash)
	if settled := request.Limit.settle(now, at.value); settled != at.value {
		at.value = settled
		s.store(m, now, at)
	}
	return at
}

// makeRoom reports whether there may be one more key.
func (s *shard) makeRoom(m *Memory, now time.Duration) bool {
	if m.keys.Load() < m.max.Load() {
		return true
	}
	if now < s.lookAt {
		return false
	}
	s.sweep(m, now)
	s.lookAt = now + lookAgain
	return m.keys.Load() < m.max.Load()
}

// store keeps the value, in a new slot where the key has none.
func (s *shard) store(m *Memory, now time.Duration, at place) {
	if slot := s.find(at.hash); slot != nil {
		slot.value = at.value
		return
	}
	s.grow(m, now)
	s.insert(at)
	s.used++
	if at.key.form() == formShared {
		s.shared++
	} else {
		m.keys.Add(1)
	}
}

// grow makes room in the table for one more. It keeps a fifth empty, so that a key is found near its home,
// and gets larger by a third, so that at most two fifths are.
func (s *shard) grow(m *Memory, now time.Duration) {
	if 5*(s.used+1) <= 4*len(s.slots) {
		return
	}
	s.sweep(m, now)
	if 10*(s.used+1) > 7*len(s.slots) {
		s.resize(max(len(s.slots)*4/3, minSlots))
	}
}

func (s *shard) insert(at place) {
	i := s.home(at.hash)
	for s.slots[i].hash != 0 {
		i = s.after(i)
	}
	s.slots[i], s.keys[i] = at.slot, at.key
}

func (s *shard) resize(size int) {
	slots, keys := s.slots, s.keys
	s.slots, s.keys = make([]slot, size), make([]Key, size)
	for i := range slots {
		if slots[i].hash != 0 {
			s.insert(place{keys[i], slots[i]})
		}
	}
}

// sweep forgets what is idle. A table that has become much too large gets smaller.
func (s *shard) sweep(m *Memory, now time.Duration) {
	for i := range s.slots {
		for s.slots[i].hash != 0 && s.idle(i, now) {
			s.remove(m, i) // which may move another one here
		}
	}
	if size := max(2*s.used, minSlots); size < len(s.slots)/4 {
		s.resize(size)
	}
}

// remove empties a slot and closes the gap that it leaves in the way of others.
func (s *shard) remove(m *Memory, gap int) {
	s.used--
	if s.keys[gap].form() == formShared {
		s.shared--
	} else {
		m.keys.Add(-1)
	}
	for i := s.after(gap); s.slots[i].hash != 0; i = s.after(i) {
		if s.distance(s.home(s.slots[i].hash), i) >= s.distance(gap, i) { // its way leads through the gap
			s.slots[gap], s.keys[gap] = s.slots[i], s.keys[i]
			gap = i
		}
	}
	s.slots[gap], s.keys[gap] = slot{}, Key{}
}

// distance is how many steps it is from one slot to another.
func (s *shard) distance(from, to int) int {
	if to < from {
		to += len(s.slots)
	}
	return to - from
}
