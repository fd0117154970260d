package discovery

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Keeper runs a source and keeps its last good answer, for all who follow it.
type Keeper struct {
	cfg KeeperConfig

	mu        sync.Mutex
	answer    Answer
	known     bool          // there is an answer
	given     bool          // by the source, in this process
	confirmed time.Time     // when it was last given, with a monotonic reading: the system's clock may be set meanwhile
	failure   error         // why the last one failed; nil where it did not
	sought    bool          // what an earlier process knew
	expired   bool          // the answer is older than the grace period, and the source fails
	late      *time.Timer   // calls restore
	over      *time.Timer   // calls expire
	first     chan struct{} // closed when there is an answer
	followers []*Follower

	telling sync.Mutex // held while followers are told, so that they are in the order of what happens
	stop    context.CancelFunc
	done    chan struct{}
}

// KeeperConfig is what a [Keeper] has to do. Its functions are called by one goroutine at a time. They may be nil.
type KeeperConfig struct {
	// GracePeriod is how long the last good answer is used while the source fails.
	GracePeriod time.Duration
	// Begin is what is known from the beginning, such as of a source that is replaced.
	Begin State
	// Stored returns what was known before the process began, and reports false where that is nothing. It is called once, if the source does not
	// answer at first.
	Stored func() (Kept, bool)
	// Good is called with each good answer, and whether it has other upstreams than the last one.
	Good func(kept Kept, changed bool)
	// Failed is called with each failure.
	Failed func(err error, state State)
	// Restored is called when the answer of an earlier process is used.
	Restored func(kept Kept)
	// Expired is called when the last good answer is older than the grace period.
	Expired func(err error)
}

// Kept is an answer, and when the source has given it last.
type Kept struct {
	Answer
	Confirmed time.Time
}

// State is what is known of a source.
type State struct {
	// Entries must not be changed.
	Entries []Entry
	// Known means that there was an answer.
	Known bool
	// Expired means that it is older than the grace period: others come before it.
	Expired bool
	// Confirmed is when the source has given it last.
	Confirmed time.Time
	// Err is why the source fails; nil if it does not.
	Err error
}

// restoreAfter is how long the source has for its first answer before that of an earlier process is used.
const restoreAfter = time.Second

// Keep begins to run a source.
func Keep(source Source, cfg KeeperConfig) *Keeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &Keeper{cfg: cfg, stop: cancel, done: make(chan struct{}), first: make(chan struct{})}
	if b := cfg.Begin; b.Known {
		k.answer, k.confirmed = Answer{Entries: b.Entries}, b.Confirmed
		k.expired = b.Err != nil && time.Since(b.Confirmed) >= cfg.GracePeriod
		k.knowLocked()
	}
	k.late = time.AfterFunc(restoreAfter, k.restore)
	go func() {
		defer close(k.done)
		source.Run(ctx, sink{k, ctx})
	}()
	return k
}

// Close ends the source, and returns when nobody is told anything any more.
func (k *Keeper) Close() {
	k.stop()
	<-k.done
	k.telling.Lock()
	defer k.telling.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sought, k.followers = true, nil
	k.late.Stop()
	if k.over != nil {
		k.over.Stop()
		k.over = nil
	}
}

// State returns what is known now.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stateLocked()
}

func (k *Keeper) stateLocked() State {
	return State{Entries: k.answer.Entries, Known: k.known, Expired: k.expired, Confirmed: k.confirmed, Err: k.failure}
}

// First is closed when there is an answer.
func (k *Keeper) First() <-chan struct{} { return k.first }

// Follower is told of changes.
type Follower struct {
	changed func()
	k       *Keeper
}

// Follow has changed called after each change, by one goroutine at a time. It must not follow or leave, nor close.
func (k *Keeper) Follow(changed func()) *Follower {
	f := &Follower{changed, k}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.followers = append(k.followers, f)
	return f
}

// Leave ends that. A call may still be under way.
func (f *Follower) Leave() {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	// A copy, because the old one may be in use.
	f.k.followers = slices.DeleteFunc(slices.Clone(f.k.followers), func(other *Follower) bool { return other == f })
}

func (k *Keeper) tell() {
	k.mu.Lock()
	followers := k.followers
	k.mu.Unlock()
	for _, f := range followers {
		f.changed()
	}
}

// sink is a Keeper as its source sees it.
type sink struct {
	*Keeper
	ctx context.Context
}

// Answer implements [Sink].
func (s sink) Answer(a Answer) {
	if s.ctx.Err() != nil {
		return
	}
	switch {
	case len(a.Entries) > MaxEntries:
		s.Failed(errTooMany())
	case len(a.Entries) > 0:
		s.take(Kept{a, time.Now()})
	case a.Bad > 0:
		s.Failed(&BadError{a})
	default:
		s.Failed(ErrEmpty)
	}
}

// Last implements [Sink].
func (s sink) Last() []Entry {
	if s.ctx.Err() == nil {
		s.restore()
	}
	return s.State().Entries
}

// Same implements [Sink].
func (s sink) Same() {
	s.mu.Lock()
	kept, given := Kept{s.answer, time.Now()}, s.given
	s.mu.Unlock()
	if s.ctx.Err() == nil && given {
		s.take(kept)
	}
}

func (k *Keeper) take(kept Kept) {
	k.telling.Lock()
	defer k.telling.Unlock()
	k.mu.Lock()
	changed := !k.known || k.expired || !same(k.answer.Entries, kept.Entries)
	if changed || k.answer.Bad != kept.Bad {
		k.answer = kept.Answer
	}
	k.confirmed, k.failure, k.expired, k.given = kept.Confirmed, nil, false, true
	if k.over != nil {
		k.over.Stop()
		k.over = nil
	}
	k.knowLocked()
	k.mu.Unlock()
	if k.cfg.Good != nil {
		k.cfg.Good(kept, changed)
	}
	if changed {
		k.tell()
	}
}

func (k *Keeper) knowLocked() {
	if !k.known {
		k.known = true
		close(k.first)
	}
}

// Failed implements [Sink].
func (s sink) Failed(err error) {
	if s.ctx.Err() != nil {
		return
	}
	s.restore()
	s.fail(err)
}

func (k *Keeper) fail(err error) {
	k.telling.Lock()
	defer k.telling.Unlock()
	k.mu.Lock()
	k.failure = err
	if k.known && k.over == nil && !k.expired {
		k.over = time.AfterFunc(max(k.cfg.GracePeriod-time.Since(k.confirmed), 0), k.expire)
	}
	state := k.stateLocked()
	k.mu.Unlock()
	if k.cfg.Failed != nil {
		k.cfg.Failed(err, state)
	}
}

// expire is called when the grace period is over.
func (k *Keeper) expire() {
	k.telling.Lock()
	defer k.telling.Unlock()
	k.mu.Lock()
	err := k.failure
	expires := k.over != nil && err != nil && time.Since(k.confirmed) >= k.cfg.GracePeriod // else there was an answer just now, or it is closed
	if expires {
		k.over, k.expired = nil, true
	}
	k.mu.Unlock()
	if !expires {
		return
	}
	if k.cfg.Expired != nil {
		k.cfg.Expired(err)
	}
	k.tell()
}

// restore uses what an earlier process knew, as long as nothing else is known.
func (k *Keeper) restore() {
	k.telling.Lock()
	defer k.telling.Unlock()
	k.mu.Lock()
	seek := !k.known && !k.sought && k.cfg.Stored != nil
	k.sought = true
	k.mu.Unlock()
	if !seek {
		return
	}
	kept, ok := k.cfg.Stored() // nothing else becomes known meanwhile
	if !ok {
		return
	}
	kept.Confirmed = time.Now().Add(-max(time.Since(kept.Confirmed), 0))
	k.mu.Lock()
	k.answer, k.confirmed = kept.Answer, kept.Confirmed
	k.knowLocked()
	k.mu.Unlock()
	if k.cfg.Restored != nil {
		k.cfg.Restored(kept)
	}
	k.tell()
}
