package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// outcome is how a connection attempt went.
type outcome struct {
	addr    net.Addr
	took    time.Duration
	conn    net.Conn
	untrack func()
	err     error
}

// has notes that the attempt is connected.
func (a *outcome) has(conn net.Conn, tracked TrackedSocket) {
	a.conn, a.err, a.untrack = conn, nil, func() {}
	if tracked != nil {
		a.untrack = sync.OnceFunc(tracked.Closed)
	}
}

func (g *goroutineStream) report(a outcome) {
	if a.err == nil || !g.isCut() {
		attemptFunc(g.cfg.Attempt).report(a.addr, a.took, a.err)
	}
}

// race tries addr, and after raceDelay another address as well. It returns the attempt that is connected first, or the last one that
// failed, and reports all but those that are given up.
func (g *goroutineStream) race(dialer *dialer, addr net.Addr) outcome {
	ctx, giveUp := context.WithCancel(g.ctx)
	defer giveUp()
	over, underWay := make(chan outcome), 0
	begin := func(addr net.Addr, kept *Keeper) {
		if addr != nil {
			underWay++
			go func() { over <- g.attempt(ctx, dialer, addr, kept) }()
		}
	}
	begin(addr, g.cfg.kept)
	delay := time.NewTimer(raceDelay)
	defer delay.Stop()
	for {
		select {
		case <-delay.C:
			if !g.cfg.takeSpare() {
				delay.Reset(raceDelay)
				continue
			}
			begin(g.cfg.Another(nil), nil)
			if underWay == 1 {
				g.cfg.releaseSpare()
			}
		case a := <-over:
			delay.Stop()
			underWay--
			g.report(a)
			switch {
			case underWay == 0:
				return a
			case a.err == nil:
				giveUp()
				(<-over).close()
				g.cfg.releaseSpare()
				return a
			case !g.isCut():
				begin(g.cfg.Another(a.err), nil)
			}
			if underWay == 1 {
				g.cfg.releaseSpare()
			}
		}
	}
}

// close closes the connection of an attempt that another one was faster than.
func (a outcome) close() {
	if a.err == nil {
		a.untrack()
		_ = a.conn.Close()
	}
}

// attempt makes one attempt. kept may have a connection for it that needs no dialing.
func (g *goroutineStream) attempt(ctx context.Context, dialer *dialer, addr net.Addr, kept *Keeper) outcome {
	began, a := time.Now(), outcome{addr: addr, untrack: func() {}}
	if k := kept.take(addr, g.cfg.Track); k != nil {
		a.has(k.conn, k.tracked)
		if g.cfg.wrap != nil && !k.wrapped {
			g.wrap(ctx, &a, began)
		}
		if a.err == nil {
			a.took = time.Since(began)
			return a
		}
	}
	conn, tracked, err := dialer.wait(ctx, addr)
	if a.err = err; err == nil {
		a.has(conn, tracked)
		if g.cfg.wrap != nil {
			g.wrap(ctx, &a, began)
		}
	}
	a.took = time.Since(began)
	return a
}

// dialer opens connections for goroutines.
type dialer struct {
	net.Dialer
	track Tracker
	local *Local
}

func newDialer(limit time.Duration, keepAlive net.KeepAliveConfig, track Tracker, local *Local) *dialer {
	return &dialer{net.Dialer{Timeout: limit, KeepAlive: -1, KeepAliveConfig: keepAlive}, track, local}
}

// wait dials an address. Where the process has no descriptor left it waits for one, until the attempt times out: other sessions end
// all the time.
func (d *dialer) wait(ctx context.Context, addr net.Addr) (net.Conn, TrackedSocket, error) {
	pause := shortagePauseMin
	for start := time.Now(); ; pause = min(pause*2, shortagePauseMax) {
		conn, tracked, err := d.open(ctx, addr)
		if err == nil || !isShortage(err) || (d.Timeout > 0 && time.Since(start) > d.Timeout) {
			return conn, tracked, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, nil, err
		}
	}
}

// open dials an address once, and tells the Tracker.
func (d *dialer) open(ctx context.Context, addr net.Addr) (conn net.Conn, tracked TrackedSocket, err error) {
	if _, unix := addr.(*net.UnixAddr); unix {
		var name string
		name, tracked = trackConnectingUnix(d.track)
		conn, err = d.unix(ctx, addr, name)
	} else {
		tracked = trackConnecting(d.track, addr)
		conn, err = d.from(ctx, addr)
		if tracked != nil && err == nil {
			local, _ := addrPort(conn.LocalAddr())
			tracked.Connected(local)
		}
	}
	if err != nil && tracked != nil {
		tracked.Closed()
	}
	return conn, tracked, err
}

// unix dials from a socket that is bound to the name, if that can be.
func (d *dialer) unix(ctx context.Context, addr net.Addr, name string) (net.Conn, error) {
	if name != "" {
		named := d.Dialer
		named.LocalAddr = &net.UnixAddr{Net: addr.Network(), Name: name}
		conn, err := named.DialContext(ctx, addr.Network(), addr.String())
		if failed := new(os.SyscallError); !errors.As(err, &failed) || failed.Syscall != "bind" {
			return conn, err
		}
	}
	return d.DialContext(ctx, addr.Network(), addr.String())
}

// from dials from a source address, if there are any.
func (d *dialer) from(ctx context.Context, addr net.Addr) (conn net.Conn, err error) {
	err = d.local.connect(addr, func(source netip.Addr) (err error) {
		from := d.Dialer
		if source.IsValid() {
			from.LocalAddr, from.Control = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), controlSource
		}
		conn, err = from.DialContext(ctx, addr.Network(), addr.String())
		return localErrorOf(err, false, source)
	})
	return conn, err
}

// How long to wait before a descriptor is tried for again.
const (
	shortagePauseMin = 5 * time.Millisecond
	shortagePauseMax = 100 * time.Millisecond
)

// isShortage reports whether err is due to a lack of descriptors or memory, or of room in the queue of a listening unix
// socket (EAGAIN of connect(2)). Such errors pass.
func isShortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN)
}
