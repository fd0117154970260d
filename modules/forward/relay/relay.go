// Package relay moves bytes between a client and an upstream until both directions are done.
//
// A [Relay] owns both connections from [Relay.Run] on. It connects to the upstream, sends what was already read from the
// client, copies in both directions, passes a FIN on as a FIN and a reset as a reset, keeps the time limits, and calls
// [Config.Done] once with how it ended. A [PacketRelay] does the same for a session of datagrams.
//
// There are two engines, which the caller does not see:
//
//   - Event loops (Linux), one per processor, for clients that are a [Detacher] or a [PacketClient]. A session needs no
//     goroutine, and no buffer while it is idle.
//   - Goroutines, for all other clients and systems, and for upstreams whose connection is wrapped ([Config.Wraps]).
//
// In both, small messages go through a buffer that is held only while there is something to move, and bulk between two
// sockets goes through splice(2) where the system has it. A connection that is not a socket, such as TLS, is read into a
// pooled buffer.
//
// The files are named by what they are about:
//
//	relay.go, packet.go   the API for streams and for datagrams; life.go, pacer.go and buffer.go serve both
//	stream_*              streams: stream_goroutines and what belongs to it, stream_loop and what belongs to it
//	packet_*              datagrams, likewise
//	loop_*                the event loop: rounds, fairness, messages, time limits
//	keeper_*              connections that are kept ready
//	sys_*                 system calls
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Reason says what ended a relay. The caller of [Relay.Close] may give others.
type Reason string

// The reasons of a [Relay] itself. ClientFIN and UpstreamFIN mean that both directions ended in order, and name the side that
// finished first.
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

// Limits are the time limits of a relay. Zero is no limit, and neither is what lies too far ahead for a Duration.
type Limits struct {
	// Connect bounds one connection attempt.
	Connect time.Duration
	// Idle ends a relay in which no byte was moved either way for so long.
	Idle time.Duration
	// HalfClose replaces Idle once one side has finished. Zero keeps Idle.
	HalfClose time.Duration
	// Lifetime bounds the whole relay, from New on.
	Lifetime time.Duration
}

// Detacher is a connection that can give its socket to an event loop.
type Detacher interface {
	// Detach returns the socket's descriptor, which is non-blocking and in no poller. The caller owns it from then on;
	// Close of the connection then does nothing. Detach reports false where that is not possible.
	Detach() (fd int, ok bool)
}

// Config is what a relay has to do.
type Config struct {
	// Client is the accepted connection.
	Client net.Conn

	// Unwrap returns the connection that a wrapper such as TLS wraps, nil where it knows none. The relay uses it to find the
	// socket of a Client that is wrapped, which it needs to send a reset and to wait until everything was sent. Nil: what is
	// wrapped in Client stays unknown, and is closed in order in place of a reset.
	Unwrap func(net.Conn) net.Conn

	// Prefetched was read from Client before, and is sent to the upstream first. The relay owns it from Run on.
	Prefetched []byte

	// Preface is sent to each upstream before anything else, such as a header of the PROXY protocol: in one segment with what the client
	// has sent until the upstream is connected, as far as the relay can tell that without waiting, and else at once. It is not the client's:
	// neither Stats nor PaceUp count it.
	Preface []byte

	// Way returns how to connect to the address that Next has returned last, and to those that Another returns after it. It is called once
	// after each Next. Event loops call it: it must not block. Nil: upstreams get Preface, and nothing else is special about them.
	Way func() Way

	// Wraps tells that Way may ask for a wrapper. Goroutines then serve the relay, because an event loop knows nothing but sockets.
	Wraps bool

	// Next returns the address to connect to: a *net.TCPAddr or a *net.UnixAddr. It is called again, with the error of
	// the attempt that failed, until it returns an error itself, which becomes the Result's. It may block: no event loop
	// calls it. ctx ends when the relay is closed, or when its client leaves.
	Next func(ctx context.Context, failed error) (net.Addr, error)

	// Hangup watches the socket of a client until stop is called, and calls gone when the client has left: reset tells whether it has reset
	// the connection, and spoken that it has sent something already. The goroutine engine needs it to notice that before there is an upstream;
	// event loops notice it themselves. Nil: it does not notice.
	Hangup func(client net.Conn, spoken bool, gone func(reset bool)) (stop func())

	// Another returns one more address of what Next gave last, such as of the same name, or nil. It is called when an attempt has
	// taken raceDelay: a second attempt begins then, and whichever is connected first wins (RFC 8305). If one of the two fails, it is
	// called again, with that error, for another address to compete with the other. Next gets the error of the last one that fails.
	// Event loops call it: it must not block. Nil: one address is tried after the other.
	Another func(failed error) net.Addr

	// Spare takes the descriptor of a second attempt, before Another is asked for one, and gives it back when there is one attempt
	// again. Where there is none to spare, Take is called again after raceDelay. It must not block. Nil: there always is.
	Spare Spare

	// Attempt is called after each connection attempt, before Next is called with its error: with the address, how long the
	// attempt took, and nil where the upstream is connected. An attempt that says nothing about the upstream is not
	// reported: one that ends because the relay does, or because another one was faster, or because this system has no descriptor, memory or port left. Event
	// loops call it: it must not block. It may be nil.
	Attempt func(addr net.Addr, took time.Duration, err error)

	// First learns of the first byte of the upstream. It may be nil.
	First *First

	// Track learns which sockets are opened to upstreams. It may be nil.
	Track Tracker

	// Local is what the socket needs of this system. It may be nil.
	Local *Local

	Limits Limits

	// PaceUp and PaceDown limit the rate of what is sent to the upstream and to the client. Nil: no limit.
	PaceUp, PaceDown Pacer

	// KeepAlive is the silence after which TCP keepalive probes are sent. Zero: never.
	KeepAlive time.Duration

	// Name identifies the session in the message of a panic. It may be nil.
	Name fmt.Stringer

	// Done is called exactly once, when both connections are closed. No event loop calls it: it may block.
	Done func(Result)

	wrap func(context.Context, net.Conn) (net.Conn, error) // of the Way
	kept *Keeper
}

// Spare has descriptors for second attempts.
type Spare interface {
	Take() bool
	Release()
}

func (c *Config) takeSpare() bool { return c.Spare == nil || c.Spare.Take() }

func (c *Config) releaseSpare() {
	if c.Spare != nil {
		c.Spare.Release()
	}
}

// Result is how a relay ended.
type Result struct {
	Reason Reason

	// Err says why no upstream could be reached. It is nil where one was.
	Err error

	// Connect is the time from New until an upstream was connected, or Next had no more.
	Connect time.Duration

	Stats
}

// Stats is what a relay has moved so far.
type Stats struct {
	// BytesUp counts what was sent to the upstream, including what was prefetched and not the Preface, BytesDown what was sent to the client.
	BytesUp, BytesDown int64

	// Spliced is the part of both that was moved with splice.
	Spliced int64

	// LastActive is when the last byte was moved, or when the upstream was connected.
	LastActive time.Time
}

// Relay is one session. Make it with [New].
type Relay struct {
	life
	cfg *Config // nil once an event loop has connected the upstream, because an idle session is to be small

	// These parts of cfg are needed until the end.
	limits    Limits
	keepAlive time.Duration
	name      fmt.Stringer
	onDone    func(Result)

	up, down atomic.Int64
	spliced  atomic.Int64
}

// New prepares a relay. Nothing happens before [Relay.Run].
func New(cfg Config) *Relay {
	r := &Relay{
		life: life{start: time.Now()}, cfg: configs.Get().(*Config),
		limits: cfg.Limits, keepAlive: cfg.KeepAlive, name: cfg.Name, onDone: cfg.Done,
	}
	*r.cfg = cfg
	return r
}

// configs are used again once an event loop has connected the upstream: else many new sessions leave much garbage behind.
var configs = sync.Pool{New: func() any { return new(Config) }}

// Run connects and moves the bytes. It may return long before the end, as soon as it does not need the caller's goroutine
// any more: what has to happen at the end belongs in Done.
func (r *Relay) Run() {
	if r.runLoop() {
		return
	}
	r.runGoroutines()
}

// Start is Run for a caller that can't wait, such as a goroutine that accepts connections. Only the first call of Next is
// made in the caller's goroutine, so Next must not block then.
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

// ClientWaits is called by Next before it waits for something that may take long, such as for its turn. Then the relay notices at once
// when its client leaves.
func (r *Relay) ClientWaits() {
	r.mu.Lock()
	e := r.engine
	r.mu.Unlock()
	if e, ok := e.(interface{ clientWaits() }); ok {
		e.clientWaits()
	}
}

// goneAfter is how old a relay without an upstream is when a client is taken for gone that has sent a FIN and nothing before it. A FIN says only
// that the client sends no more. It may be said by one that has asked its question and waits for the answer: such a client is
// waited for. One that has asked for nothing has given up, or wants to read what the upstream says first. An upstream that is well is
// connected by then. While Next has the client wait, it is taken for gone at once.
const goneAfter = raceDelay

// raceDelay is how long an attempt is under way before another one begins (RFC 8305, section 8).
const raceDelay = 250 * time.Millisecond

// never is the time of what does not happen.
const never = time.Duration(1<<63 - 1)

// later returns t+d, or never where that is more than a Duration holds. Neither is negative.
func later(t, d time.Duration) time.Duration {
	if d > never-t {
		return never
	}
	return t + d
}

func (r *Relay) expires(connected, halfClosed bool) (time.Duration, Reason) {
	return r.limits.expires(r.activeAt(), connected, halfClosed)
}

// expires returns the age at which a time limit ends a relay if nothing is moved until then, and the limit. All times are
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
	if connected && silence > 0 && silence < age-lastActive {
		age, reason = lastActive+silence, IdleTimeout
	}
	return age, reason
}

func (r *Relay) done(reason Reason, err error) {
	if r.onDone != nil {
		r.onDone(Result{Reason: reason, Err: err, Connect: r.connect, Stats: r.Stats()})
	}
}

// connectReason is the reason of a relay that got no upstream because of err.
func connectReason(err error) Reason {
	var timeout interface{ Timeout() bool }
	if errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout()) {
		return ConnectTimeout
	}
	return ConnectFailed
}

// dialError adds the address to the error of an attempt, as the net package does.
func dialError(addr net.Addr, err error) error {
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // one that is wrapped names its call already
		err = os.NewSyscallError("connect", errno)
	}
	return &net.OpError{Op: "dial", Net: addr.Network(), Addr: addr, Err: err}
}
