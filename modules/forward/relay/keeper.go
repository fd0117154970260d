package relay

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// keptLook is how often a Keeper looks after its connections.
	keptLook = time.Second
	// keptPause is the least time between two looks, and keptDials how many connections to an address are being opened at a time:
	// no more than 250 a second.
	keptPause = 20 * time.Millisecond
	keptDials = 5
	// keptTries is how many connections a session looks at before it dials: where a server has just been restarted all have ended.
	keptTries = 4
	// keptAddrs bounds the addresses of one upstream to which connections are kept.
	keptAddrs = 16
	// keptRetryMin and keptRetryMax are the pauses after an address could not be connected to.
	keptRetryMin = time.Second
	keptRetryMax = 30 * time.Second
	// keptYoung is how old a connection is before its end is taken for that of one that worked. What ends before, such as where the server lets
	// nobody in or the connection leads back to the gateway, counts as one that could not be made.
	keptYoung = time.Second
	// keptQuiet is for how long nothing is kept to a server that has spoken first.
	keptQuiet = 5 * time.Minute
)

// keptProbes is how it is noticed that a server has gone without a word.
var keptProbes = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}

// Fate is what has become of a connection that a [Keeper] had, or tried to get.
type Fate string

// The fates of connections.
const (
	KeptUsed    Fate = "used"    // a session has it
	KeptClosed  Fate = "closed"  // the server has closed it
	KeptExpired Fate = "expired" // it was kept as long as it may be, or the upstream has another address now
	KeptSpoke   Fate = "spoke"   // the server has sent something
	KeptFailed  Fate = "failed"  // it could not be connected
)

// KeeperConfig is what a [Keeper] has to do.
type KeeperConfig struct {
	// Count is how many connections are kept ready to each address, and MaxIdle for how long each.
	Count   int
	MaxIdle time.Duration

	// Addrs returns the addresses that the upstream has now, best first. To the first one connections are kept from the beginning, to
	// others once a session has asked for them.
	Addrs func() []net.Addr

	// Connect bounds one attempt to connect, with Wrap. Zero: no limit.
	Connect time.Duration

	// Wrap is that of the [Way] where the connection can be wrapped ahead. A read from the wrapper that has timed out must not break it, as it
	// does not break TLS. Nil: connections are kept as they are, and sessions wrap them.
	Wrap func(ctx context.Context, conn net.Conn) (net.Conn, error)

	// Track is as in [Config], but for one socket. Where what it returns is a [KeptSocket] it learns who takes the socket.
	Track func() Tracker

	// Local is as in [Config].
	Local *Local

	// Spare has the descriptor of each connection until a session takes it, which has one of its own. Nil: there always is one.
	Spare Spare

	// Report is called for each connection. It must not block. It may be nil.
	Report func(fate Fate, addr net.Addr)
}

func (c *KeeperConfig) takeSpare() bool { return c.Spare == nil || c.Spare.Take() }

func (c *KeeperConfig) releaseSpare() {
	if c.Spare != nil {
		c.Spare.Release()
	}
}

// KeptSocket is a socket of a [Keeper].
type KeptSocket interface {
	TrackedSocket
	// TakenBy tells whose socket it is from now on.
	TakenBy(t Tracker)
}

// Keeper keeps connections to an upstream ready, so that sessions need not wait for them. It hands out none that has ended, that the server
// has sent anything on, or that is older than MaxIdle: in their place sessions dial. A nil Keeper has none.
type Keeper struct {
	cfg    KeeperConfig
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{}
	work   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	places map[keptKey]*place
}

// keptKey is an address.
type keptKey struct {
	ip   netip.AddrPort
	path string
}

func keptKeyOf(addr net.Addr) (key keptKey) {
	if ip, ok := addrPort(addr); ok {
		key.ip = ip
	} else {
		key.path = addr.String()
	}
	return key
}

// place is what is kept to one address.
type place struct {
	addr    net.Addr
	ready   []*keptConn
	dialing int
	retry   time.Duration // the last pause after a failure
	retryAt time.Time     // nothing is dialed before
	quietBy time.Time     // nothing is kept before: the server speaks first
	gone    bool          // the upstream has other addresses now
}

// keptConn is a connection that is ready.
type keptConn struct {
	conn    net.Conn // wrapped, if the Keeper does that
	sock    net.Conn // the socket beneath
	wrapped bool
	tracked TrackedSocket
	since   time.Time
}

// NewKeeper begins to keep connections, until Close.
func NewKeeper(cfg KeeperConfig) *Keeper {
	k := &Keeper{cfg: cfg, wake: make(chan struct{}, 1), places: make(map[keptKey]*place)}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.work.Go(k.lookAfter)
	return k
}

// Close closes what is kept. It waits for what is being dialed, which ends at once.
func (k *Keeper) Close() {
	k.cancel()
	k.work.Wait()
	k.mu.Lock()
	k.closed = true
	places := k.places
	k.places = nil
	k.mu.Unlock()
	for _, p := range places {
		for _, c := range p.ready {
			k.discard(c)
		}
	}
}

// Ready returns how many connections are ready.
func (k *Keeper) Ready() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.places {
		n += len(p.ready)
	}
	return n
}

// take returns a connection to an address, nil where there is none. It does not block, except on systems other than Linux for a millisecond.
func (k *Keeper) take(addr net.Addr, track Tracker) *keptConn {
	if k == nil {
		return nil
	}
	defer k.look()
	for range keptTries {
		c := k.pop(addr)
		if c == nil {
			return nil
		}
		if fate := c.fate(k.cfg.MaxIdle); fate != "" {
			k.drop(c, addr, fate)
			continue
		}
		k.cfg.releaseSpare()
		if s, ok := c.tracked.(KeptSocket); ok && track != nil {
			s.TakenBy(track)
		}
		k.report(KeptUsed, addr)
		return c
	}
	return nil
}

// pop takes the newest connection to an address.
func (k *Keeper) pop(addr net.Addr) *keptConn {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.placeOf(addr)
	if p == nil || len(p.ready) == 0 {
		return nil
	}
	last := len(p.ready) - 1
	c := p.ready[last]
	p.ready[last] = nil
	p.ready = p.ready[:last]
	return c
}

// placeOf returns the place of an address, nil where there are as many as there may be. It is called with k.mu locked.
func (k *Keeper) placeOf(addr net.Addr) *place {
	if k.closed {
		return nil
	}
	key := keptKeyOf(addr)
	p := k.places[key]
	if p == nil && len(k.places) < keptAddrs {
		p = &place{addr: addr}
		k.places[key] = p
	}
	return p
}

// look has the connections looked after soon.
func (k *Keeper) look() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *Keeper) report(fate Fate, addr net.Addr) {
	if k.cfg.Report != nil {
		k.cfg.Report(fate, addr)
	}
}

// drop closes a connection that can't be used. To a server that speaks first none is kept for a while.
func (k *Keeper) drop(c *keptConn, addr net.Addr, fate Fate) {
	k.discard(c)
	k.report(fate, addr)
	young := fate == KeptClosed && time.Since(c.since) < keptYoung
	if !young && fate != KeptSpoke {
		return
	}
	k.mu.Lock()
	p := k.placeOf(addr)
	var others []*keptConn
	switch {
	case p == nil:
	case young:
		p.failed()
	default:
		others, p.ready, p.quietBy = p.ready, nil, time.Now().Add(keptQuiet)
	}
	k.mu.Unlock()
	for _, other := range others {
		k.discard(other)
	}
}

// discard closes a connection without waiting: what a wrapper would send at its end is not sent.
func (k *Keeper) discard(c *keptConn) {
	if c.tracked != nil {
		c.tracked.Closed()
	}
	_ = c.sock.Close()
	k.cfg.releaseSpare()
}

// fate returns why a connection can't be used, nothing where it can.
func (c *keptConn) fate(maxIdle time.Duration) Fate {
	if time.Since(c.since) >= maxIdle {
		return KeptExpired
	}
	return c.look()
}
