package relay

import (
	"context"
	"net"
	"time"
)

// Way is how an upstream is connected to.
type Way struct {
	// Preface is what [Config.Preface] is for other upstreams.
	Preface []byte

	// Wrap wraps the connection to the upstream, such as in TLS. It is called as soon as that is connected, behind the Preface, and bounded by
	// ctx, which ends with [Limits.Connect]. Where it fails, the attempt has failed; it need not close conn. A wrapper that has a method
	// NetConn tells by it what it wraps. Nil: bytes are sent as they are.
	Wrap func(ctx context.Context, conn net.Conn) (net.Conn, error)

	// Kept has connections that are connected already. Where it has one to the address that Next has returned, that is used. Nil: none.
	Kept *Keeper
}

// chooseWay is called after Next.
func (c *Config) chooseWay() {
	if c.Way == nil {
		return
	}
	way := c.Way()
	c.Preface, c.wrap, c.kept = way.Preface, way.Wrap, way.Kept
}

// wrap sends the preface of an attempt that is connected, and wraps the connection.
func (g *goroutineStream) wrap(ctx context.Context, a *outcome, began time.Time) {
	if g.limits.Connect > 0 {
		bounded, cancel := context.WithDeadline(ctx, began.Add(g.limits.Connect))
		defer cancel()
		ctx = bounded
	}
	conn, err := wrapBehind(ctx, a.conn, g.cfg.Preface, g.cfg.wrap)
	if err == nil {
		a.conn = conn
		return
	}
	a.untrack()
	_ = a.conn.Close()
	a.conn, a.untrack, a.err = nil, func() {}, &net.OpError{Op: "handshake", Net: a.addr.Network(), Addr: a.addr, Err: err}
}

// wrapBehind sends a preface in clear, and wraps what follows.
func wrapBehind(
	ctx context.Context, conn net.Conn, preface []byte, wrap func(context.Context, net.Conn) (net.Conn, error),
) (net.Conn, error) {
	if len(preface) > 0 {
		until, _ := ctx.Deadline() // none is the zero Time, which is no deadline
		_ = conn.SetWriteDeadline(until)
		if _, err := conn.Write(preface); err != nil {
			return nil, err
		}
		_ = conn.SetWriteDeadline(time.Time{})
	}
	return wrap(ctx, conn)
}

// unwrapUpstream returns what the wrapper of an upstream's connection wraps, nil where it does not tell.
func unwrapUpstream(conn net.Conn) net.Conn {
	if wrapper, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return wrapper.NetConn()
	}
	return nil
}
