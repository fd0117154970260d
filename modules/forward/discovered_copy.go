package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

const (
	// copyTimeout bounds one access to the storage.
	copyTimeout = 5 * time.Second
	// copyPause is the least time between two copies: a source may change all the time.
	copyPause = 2 * time.Second
)

// storedCopy keeps the last good answer of a source in the storage, for a start at which the source can't be reached. A goroutine writes it:
// a storage that is slow holds up no change.
type storedCopy struct {
	d        *discovered
	renew    time.Duration // after so long it is stored again that an answer still holds
	unstored *degraded.Part

	mu      sync.Mutex
	latest  *discovery.Kept // to be stored
	stored  time.Time       // when the answer was confirmed that is stored
	due     chan struct{}
	stop    context.CancelFunc
	stopped context.Context
	done    chan struct{}
}

// copyHead is what stands in front of the entries.
type copyHead struct {
	Source    string    `json:"source"`
	Confirmed time.Time `json:"confirmed"`
	SHA256    string    `json:"sha256"` // of the entries
}

func (c *storedCopy) begin(d *discovered, grace time.Duration) {
	c.d, c.renew = d, max(grace/10, time.Minute)
	c.unstored = degraded.New("upstream_copy")
	c.due, c.done = make(chan struct{}, 1), make(chan struct{})
	c.stopped, c.stop = context.WithCancel(context.Background())
	go c.run()
}

func (c *storedCopy) end() {
	c.stop()
	<-c.done
	c.unstored.Close()
}

// keep has an answer stored soon, if it is another one than the last, or that is not known to hold for long.
func (c *storedCopy) keep(kept discovery.Kept, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !changed && kept.Confirmed.Sub(c.stored) < c.renew {
		return
	}
	c.latest, c.stored = &kept, kept.Confirmed
	select {
	case c.due <- struct{}{}:
	default: // it is
	}
}

func (c *storedCopy) run() {
	defer close(c.done)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-c.stopped.Done():
			c.store()
			return
		case <-c.due:
		}
		c.store()
		pause.Reset(copyPause)
		select {
		case <-c.stopped.Done():
		case <-pause.C:
		}
	}
}

// store writes what is not stored. What fails is tried again with the next answer.
func (c *storedCopy) store() {
	c.mu.Lock()
	latest := c.latest
	c.latest = nil
	c.mu.Unlock()
	if latest == nil || discoveries.outdated(c.d, latest.Confirmed) {
		return
	}
	value, err := encodeCopy(c.d.name, *latest)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), copyTimeout)
		defer cancel()
		for _, key := range c.d.asked.storageKeys() {
			err = errors.Join(err, c.d.storage.Value().Store(ctx, key, value))
		}
	}
	if err == nil {
		c.unstored.End(c.d.log(), "the answer of a source of upstreams is stored again")
		return
	}
	c.unstored.Begin(c.d.log(), "the answer of a source of upstreams can't be stored, so a restart will need the source", zap.Error(err))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stored = time.Time{}
}

// load returns what an earlier process has stored.
func (c *storedCopy) load() (discovery.Kept, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), copyTimeout)
	defer cancel()
	var value []byte
	err := fs.ErrNotExist
	for _, key := range c.d.asked.storageKeys() {
		if value, err = c.d.storage.Value().Load(ctx, key); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return discovery.Kept{}, false
	}
	var kept discovery.Kept
	if err == nil {
		kept, err = decodeCopy(value)
	}
	if err != nil {
		c.d.log().Warn("what is stored of a source of upstreams can't be used", zap.Error(err))
		return discovery.Kept{}, false
	}
	return kept, true
}

func encodeCopy(source string, kept discovery.Kept) ([]byte, error) {
	entries, err := json.Marshal(kept.Entries)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(entries)
	head, err := json.Marshal(copyHead{source, kept.Confirmed, hex.EncodeToString(sum[:])})
	if err != nil {
		return nil, err
	}
	return append(append(head, '\n'), entries...), nil
}

func decodeCopy(value []byte) (kept discovery.Kept, err error) {
	first, entries, _ := bytes.Cut(value, []byte{'\n'})
	var head copyHead
	if err := json.Unmarshal(first, &head); err != nil {
		return kept, fmt.Errorf("its head: %w", err)
	}
	if sum := sha256.Sum256(entries); hex.EncodeToString(sum[:]) != head.SHA256 {
		return kept, errors.New("it is not what was stored: its hash is another one")
	}
	var all []discovery.Entry
	if err := json.Unmarshal(entries, &all); err != nil {
		return kept, err
	}
	c := discovery.Collector{Unix: true}
	for _, e := range all {
		c.Add(e, "")
	}
	kept.Confirmed = head.Confirmed
	if kept.Answer, err = c.Answer(); err == nil && len(kept.Entries) == 0 {
		err = discovery.ErrEmpty
	}
	return kept, err
}
