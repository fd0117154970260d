package relay

import (
	"context"
	"net"
	"slices"
	"time"
)

// lookAfter looks after the connections until Close.
func (k *Keeper) lookAfter() {
	every := min(max(k.cfg.MaxIdle/4, keptPause), keptLook)
	for {
		k.followAddrs()
		for _, p := range k.all() {
			k.check(p)
			k.fill(p)
		}
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(keptPause):
		}
		select {
		case <-k.ctx.Done():
			return
		case <-k.wake:
		case <-time.After(every):
		}
	}
}

func (k *Keeper) all() []*place {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]*place, 0, len(k.places))
	for _, p := range k.places {
		all = append(all, p)
	}
	return all
}

// followAddrs drops the connections to addresses that the upstream does not have any more.
func (k *Keeper) followAddrs() {
	now := k.cfg.Addrs()
	var gone []*place
	k.mu.Lock()
	for key, p := range k.places {
		if !slices.ContainsFunc(now, func(addr net.Addr) bool { return keptKeyOf(addr) == key }) {
			p.gone = true
			gone = append(gone, p)
			delete(k.places, key)
		}
	}
	if len(now) > 0 {
		k.placeOf(now[0])
	}
	k.mu.Unlock()
	for _, p := range gone {
		for _, c := range p.ready {
			k.discard(c)
			k.report(KeptExpired, p.addr)
		}
	}
}

// check drops what can't be used any more. It looks at one after the other, so that sessions have the others meanwhile.
func (k *Keeper) check(p *place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for range len(p.ready) {
		if len(p.ready) == 0 {
			return
		}
		c := p.ready[0]
		p.ready = p.ready[1:]
		k.mu.Unlock()
		fate := c.fate(k.cfg.MaxIdle)
		if fate != "" {
			k.drop(c, p.addr, fate)
		}
		k.mu.Lock()
		if fate == "" {
			p.ready = append(p.ready, c)
			if time.Since(c.since) >= keptYoung {
				p.retry = 0
			}
		}
	}
}

// fill begins to dial what is missing.
func (k *Keeper) fill(p *place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Before(p.retryAt) || now.Before(p.quietBy) {
		return
	}
	for p.dialing < keptDials && p.dialing+len(p.ready) < k.cfg.Count && k.cfg.takeSpare() {
		p.dialing++
		k.work.Go(func() { k.dial(p) })
	}
}

// dial opens one connection.
func (k *Keeper) dial(p *place) {
	c, err := k.open(p.addr)
	k.mu.Lock()
	p.dialing--
	var late bool
	switch {
	case err != nil:
		p.failed()
	case p.gone || time.Now().Before(p.quietBy):
		late = true
	default:
		p.ready = append(p.ready, c)
	}
	k.mu.Unlock()
	switch {
	case late:
		k.discard(c)
	case err != nil:
		k.cfg.releaseSpare()
		if k.ctx.Err() == nil {
			k.report(KeptFailed, p.addr)
		}
	default:
		k.look()
	}
}

// failed has the next attempts wait: those that are under way at the same time count as one.
func (p *place) failed() {
	if now := time.Now(); now.After(p.retryAt) {
		p.retry = min(max(2*p.retry, keptRetryMin), keptRetryMax)
		p.retryAt = now.Add(p.retry)
	}
}

// open connects to an address, and wraps the connection if that is to be done ahead.
func (k *Keeper) open(addr net.Addr) (*keptConn, error) {
	ctx := k.ctx
	if k.cfg.Connect > 0 {
		bounded, cancel := context.WithTimeout(ctx, k.cfg.Connect)
		defer cancel()
		ctx = bounded
	}
	var track Tracker
	if k.cfg.Track != nil {
		track = k.cfg.Track()
	}
	conn, tracked, err := newDialer(k.cfg.Connect, keptProbes, track, k.cfg.Local).open(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := &keptConn{conn: conn, sock: conn, tracked: tracked, since: time.Now()}
	if k.cfg.Wrap == nil {
		return c, nil
	}
	if c.conn, err = k.cfg.Wrap(ctx, probed(conn)); err != nil {
		if tracked != nil {
			tracked.Closed()
		}
		_ = conn.Close()
		return nil, err
	}
	c.wrapped = true
	return c, nil
}
