// Package relay moves bytes between a client and an upstream until both directions are done.
//
// A [Relay] owns both connections from [Relay.Run] on. It connects to the upstream, sends what was
// already read from the client, copies in both directions, passes a FIN on as a FIN and a reset as
// a reset, keeps the time limits, and tells the caller once, through [Config.Done], how it ended.
//
// How the bytes move is not part of the API. There are two engines:
//
//   - Event loops (Linux), one per core, for clients that are a [Detacher]. A session needs no
//     goroutine, and no buffer while it is idle.
//   - Goroutines, for every other pair of connections and system.
//
// In both, each direction adapts: small messages go through a buffer that is held only while there
// is something to move, bulk between two sockets goes through splice(2) where the system has it.
// A connection that is not a socket (TLS, for example) is read into a pooled buffer.
//
// A [PacketRelay] does the same for a session of datagrams, with the same loops for clients that are a
// [PacketClient].
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// Reason says what ended a relay. The caller of [Relay.Close] may give others.
type Reason string

// The reasons that a relay finds itself. A fin is the reason where both directions ended in order;
// it then names the side that finished first.
const (
	ClientFIN      Reason = "client_fin"
	UpstreamFIN    Reason = "upstream_fin"
	ClientReset    Reason = "client_reset"
	UpstreamReset  Reason = "upstream_reset"
	IdleTimeout    Reason = "idle_timeout"
	MaxLifetime    Reason = "max_lifetime"
	ConnectFailed  Reason = "connect_failed"
	ConnectTimeout Reason = "connect_timeout"
)

// Limits bound how long a relay may take over things. Zero is no limit.
type Limits struct {
	// Connect bounds one connection attempt.
	Connect time.Duration
	// Idle bounds the silence: no byte in either direction.
	Idle time.Duration
	// HalfClose replaces Idle once one side has finished. Zero keeps Idle.
	HalfClose time.Duration
	// Lifetime bounds the whole relay, from New on.
	Lifetime time.Duration
}

// Detacher is a connection that can hand its socket over to an event loop.
type Detacher interface {
	// Detach returns the socket's descriptor, which is non-blocking and in no poller. The
	// connection is then without it: its Close does nothing. It reports false where it can't.
	Detach() (fd int, ok bool)
}

// Config is what a relay has to do.
type Config struct {
	// Client is the accepted connection.
	Client net.Conn

	// Prefetched was read from Client before and is sent to the upstream first. It is the relay's from
	// Run on.
	Prefetched []byte

	// Next gives the address to connect to: a *net.TCPAddr or a *net.UnixAddr. It is called again
	// with the error of the attempt that failed until it returns an error, which then is the
	// Result's. It may block, and is never called by an event loop; ctx ends when the relay is
	// closed.
	Next func(ctx context.Context, failed error) (net.Addr, error)

	Limits Limits

	// PaceUp and PaceDown bound the rate of what is sent to the upstream and to the client. Nil: no bound.
	PaceUp, PaceDown Pacer

	// KeepAlive is the silence after which a peer is asked whether it is still there. Zero: never.
	KeepAlive time.Duration

	// Name is what the session is called where the process ends over it. It may be nil.
	Name fmt.Stringer

	// Done is called exactly once, when both connections are closed, and never by an event loop.
	Done func(Result)
}

// Result is how a relay ended.
type Result struct {
	Reason Reason

	// Err is why no upstream could be reached. It is nil where one was.
	Err error

	// Connect is the time from New until the upstream was connected, or given up.
	Connect time.Duration

	Stats
}

// Stats is what a relay has moved so far.
type Stats struct {
	// BytesUp and BytesDown count what was read from the client (with what was prefetched) and
	// from the upstream and handed to the other side's socket.
	BytesUp, BytesDown int64

	// Spliced is the part of both that never entered user space.
	Spliced int64

	// LastActive is when the last byte moved, or when the upstream was connected.
	LastActive time.Time
}

// Relay is one session. Make it with [New].
type Relay struct {
	life
	cfg Config

	up, down atomic.Int64
	spliced  atomic.Int64
}

// New prepares a relay. Nothing happens before [Relay.Run].
func New(cfg Config) *Relay {
	return &Relay{cfg: cfg, life: life{start: time.Now()}}
}

// Run connects and moves the bytes. It returns as soon as it does not need the caller's goroutine
// any more, which may be long before the end: what hangs on the end belongs into Done.
func (r *Relay) Run() {
	if r.runLoop() {
		return
	}
	r.runGoroutines()
}

// Start is Run for a caller that can't wait: where it takes a goroutine, Start makes one. Only Next is still
// called by the caller.
func (r *Relay) Start() {
	if !r.runLoop() {
		go r.runGoroutines()
	}
}

// Stats may be called at any time.
func (r *Relay) Stats() Stats {
	return Stats{
		BytesUp:    r.up.Load(),
		BytesDown:  r.down.Load(),
		Spliced:    r.spliced.Load(),
		LastActive: r.start.Add(r.activeAt()),
	}
}

// never is the age at which a limit that is not set ends a relay.
const never = time.Duration(1<<63 - 1)

func (r *Relay) expires(connected, halfClosed bool) (time.Duration, Reason) {
	return r.cfg.Limits.expires(r.activeAt(), connected, halfClosed)
}

// expires returns the age at which a limit ends a relay if nothing moves until then, and which. All times are
// ages of the relay.
func (l *Limits) expires(lastActive time.Duration, connected, halfClosed bool) (age time.Duration, reason Reason) {
	age = never
	if l.Lifetime > 0 {
		age, reason = l.Lifetime, MaxLifetime
	}
	silence := l.Idle
	if halfClosed && l.HalfClose > 0 {
		silence = l.HalfClose
	}
	if connected && silence > 0 && silence < age-lastActive { // the sum may be more than a Duration holds
		age, reason = lastActive+silence, IdleTimeout
	}
	return age, reason
}

func (r *Relay) done(reason Reason, err error) {
	if r.cfg.Done != nil {
		r.cfg.Done(Result{Reason: reason, Err: err, Connect: r.connect, Stats: r.Stats()})
	}
}

// connectReason tells a timeout from every other way in which an upstream can't be reached.
func connectReason(err error) Reason {
	var timeout interface{ Timeout() bool }
	if errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout()) {
		return ConnectTimeout
	}
	return ConnectFailed
}
