// Package relay moves bytes between a client and an upstream until both directions are done.
//
// A [Relay] owns both connections from [Relay.Run] on. It connects to the upstream, sends what was
// already read from the client, copies in both directions, passes a FIN on as a FIN and a reset as
// a reset, keeps the time limits, and tells the caller once, through [Config.Done], how it ended.
//
// How the bytes move is not part of the API. Between two raw sockets each direction adapts: small
// messages go through a buffer that is borrowed only while there is something to read, bulk goes
// through splice(2) where the system has it. Anything else goes through pooled buffers.
package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
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

// Config is what a relay has to do.
type Config struct {
	// Client is the accepted connection.
	Client net.Conn

	// Prefetched was read from Client before and is sent to the upstream first.
	Prefetched []byte

	// Next gives the address to connect to: a *net.TCPAddr or a *net.UnixAddr. It is called again
	// with the error of the attempt that failed until it returns an error, which then is the
	// Result's. It may block; ctx ends when the relay is closed.
	Next func(ctx context.Context, failed error) (net.Addr, error)

	Limits Limits

	// Done is called exactly once, when both connections are closed. It must not block.
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
	cfg   Config
	start time.Time

	// lastActive is nanoseconds since start.
	lastActive atomic.Int64

	ctx    context.Context
	cancel context.CancelFunc

	mu        sync.Mutex
	reason    Reason // why the relay was cut; empty while it runs or ends in order
	firstFIN  Reason
	client    *end
	upstream  *end // nil until connected
	connected time.Duration
	timer     *time.Timer
	over      bool

	up, down pump
}

// New prepares a relay. Nothing happens before [Relay.Run].
func New(cfg Config) *Relay {
	r := &Relay{cfg: cfg, start: time.Now(), client: newEnd(cfg.Client)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Run connects and moves the bytes. It returns as soon as it does not need the caller's goroutine
// any more, which may be long before the end: what hangs on the end belongs into Done.
func (r *Relay) Run() {
	r.runGoroutines()
}

// Close ends the relay: both connections are closed in order, after the kernel has sent what they
// were given. Done gets the reason, unless the relay had ended before. Close does not block.
func (r *Relay) Close(reason Reason) {
	r.cut(reason)
}

// Stats may be called at any time.
func (r *Relay) Stats() Stats {
	return Stats{
		BytesUp:    r.up.moved.Load(),
		BytesDown:  r.down.moved.Load(),
		Spliced:    r.up.spliced.Load() + r.down.spliced.Load(),
		LastActive: r.start.Add(time.Duration(r.lastActive.Load())),
	}
}

// touch notes that bytes moved just now.
func (r *Relay) touch() { r.lastActive.Store(int64(time.Since(r.start))) }

// connectReason tells a timeout from every other way in which an upstream can't be reached.
func connectReason(err error) Reason {
	var timeout interface{ Timeout() bool }
	if errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout()) {
		return ConnectTimeout
	}
	return ConnectFailed
}
