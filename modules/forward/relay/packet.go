package relay

import (
	"context"
	"fmt"
	"math"
	"net"
	"sync/atomic"
	"time"
)

// The further reasons of a [PacketRelay]. A network's own come from [PacketClient.Attach].
const (
	// MaxReplies: all replies were sent that there may be.
	MaxReplies Reason = "max_replies"
	// Evicted: the network had ended the session before the relay got it.
	Evicted Reason = "evicted"
)

// askInterval is how often an upstream that refuses datagrams is looked up again. It has to be well under the
// two seconds in which replies come again when it has.
const askInterval = time.Second

// Drop says why a datagram was not passed on.
type Drop string

// The reasons of a [PacketRelay] to drop a datagram.
const (
	// DropQueueFull: more came from the client than is kept while there is no upstream yet.
	DropQueueFull Drop = "queue_full"
	// DropUpstreamFull: the socket to the upstream had no room.
	DropUpstreamFull Drop = "upstream_full"
	// DropUpstreamRefused: nobody listens on the upstream's port (ICMP port unreachable).
	DropUpstreamRefused Drop = "upstream_refused"
	// DropReplyRatio: the client might be the victim of somebody who uses its address.
	DropReplyRatio Drop = "reply_ratio"
	// DropLimited: AllowUp or AllowDown has refused it.
	DropLimited Drop = "limited"
	// DropSendFailed: it could not be sent, to whichever side.
	DropSendFailed Drop = "send_failed"
)

// PacketClient is a client's session on a packet listener that gives event loops what they need. Others are
// served by goroutines, which Read and Write one datagram at a time.
type PacketClient interface {
	net.Conn

	// Attach hands the session over: receive is called with every datagram of the client, one call at a
	// time and in order, those first that came before. It does not block, and b is valid during the call. Where
	// it reports false the relay is about to end: b, and what follows, is for another session.
	// closed is called at most once, without locks, when the network ends the session, and says why. When
	// Close has returned neither is called any more. Attach reports false where the session has ended.
	Attach(receive func(b []byte) (taken bool), closed func(reason string)) bool

	// ReplyPath is how replies leave: sendmsg(2) on that non-blocking descriptor, to the address name and
	// with the control message. All are valid until Close.
	ReplyPath() (fd int, name, control []byte)

	// Answered is called once, when the first reply is about to be sent: the client may say something to it at once.
	Answered()
}

// PacketConfig is what a relay of datagrams has to do.
type PacketConfig struct {
	// Client is the session of the client. Its Close is called after Done, so that the network gives the place of a
	// session to another one when it is accounted for.
	Client net.Conn

	// Prefetched are datagrams that were read from Client before, to be sent to the upstream first. They are
	// the relay's from Run on. A PacketClient gives them itself.
	Prefetched [][]byte

	// Next gives the address to send to: a *net.UDPAddr. It may block, and is never called by an event
	// loop; ctx ends when the relay is closed. Where the address can't be used it is called again with the
	// error, until it returns one itself. The session then ends, if it never had an upstream.
	//
	// While the upstream refuses datagrams, Next is called again with the error that says so, at most once
	// a second. It may then give the same address again, after another look-up perhaps. Where it returns an error the
	// session keeps the address that it has, and asks again later. Calls do not overlap, but the last one may still
	// be under way after Done, with ctx ended.
	Next func(ctx context.Context, failed error) (net.Addr, error)

	// Limits: Connect bounds how long a socket is waited for where the process has none left. HalfClose means
	// nothing here.
	Limits Limits

	// MaxReplies ends the session when so many replies have been sent for each datagram of the client, as nginx's
	// proxy_responses does: with 1, a client that has several questions open gets all answers. Zero: no limit.
	MaxReplies int64

	// MaxReplyRatio bounds what is sent to a client that may not have asked for it, its address being
	// somebody else's: so many bytes for each one that came from it, until it has sent a datagram after it
	// was sent a reply. Replies beyond are dropped. Zero: no limit.
	MaxReplyRatio float64

	// AllowUp and AllowDown are asked about each datagram before it is sent to the upstream and to the client;
	// those that they refuse are dropped. They must not block. Nil: all are allowed.
	AllowUp, AllowDown func(size int) bool

	// Name is what the session is called where the process ends over it. It may be nil.
	Name fmt.Stringer

	// Dropped is called for each datagram that is dropped, from the goroutines that move datagrams: it must
	// not block. It may be nil.
	Dropped func(Drop)

	// Done is called exactly once, when the socket to the upstream is closed, and never by an event loop.
	Done func(PacketResult)
}

// PacketResult is how a relay of datagrams ended.
type PacketResult struct {
	Reason Reason

	// Err is why there was no upstream. It is nil where there was one.
	Err error

	// Connect is the time from NewPacket until the upstream was known, or given up. It is zero where the relay
	// was closed before, unless Err says that it was while Next was called.
	Connect time.Duration

	PacketStats
}

// PacketStats is what a relay of datagrams has moved so far.
type PacketStats struct {
	// Up counts what was sent to the upstream, Down what was sent to the client.
	BytesUp, BytesDown         int64
	DatagramsUp, DatagramsDown int64

	// Dropped counts the datagrams that were not, either way.
	Dropped int64

	// LastActive is when the last datagram came from the client or was sent to it, or when the upstream was
	// connected.
	LastActive time.Time
}

// PacketRelay is one session of datagrams, which are passed on whole, from 0 to 65,507 bytes. Make it with
// [NewPacket]. Its way of moving them is chosen as a [Relay]'s is.
//
// An upstream that refuses datagrams does not end the session: it may come back, at the same address or at another.
type PacketRelay struct {
	life
	cfg PacketConfig

	bytesUp, bytesDown         atomic.Int64
	datagramsUp, datagramsDown atomic.Int64
	dropped                    atomic.Int64

	trust    atomic.Int32
	requests atomic.Int64 // datagrams from the client that may be passed on, where MaxReplies is set
	asked    atomic.Int64 // bytes from the client, where MaxReplyRatio is set
	granted  int64        // bytes of replies that MaxReplyRatio has allowed; belongs to whoever sends replies
}

// NewPacket prepares a relay of datagrams. Nothing happens before [PacketRelay.Run].
func NewPacket(cfg PacketConfig) *PacketRelay {
	return &PacketRelay{cfg: cfg, life: life{start: time.Now()}}
}

// Run finds the upstream and moves datagrams. It returns as soon as it does not need the caller's goroutine
// any more, which may be long before the end: what hangs on the end belongs into Done.
func (r *PacketRelay) Run() {
	if r.runLoop() {
		return
	}
	r.runGoroutines()
}

// Start is Run for a caller that can't wait: where it takes a goroutine, Start makes one. Only Next is still
// called by the caller.
func (r *PacketRelay) Start() {
	if !r.runLoop() {
		go r.runGoroutines()
	}
}

// Stats may be called at any time.
func (r *PacketRelay) Stats() PacketStats {
	return PacketStats{
		BytesUp:       r.bytesUp.Load(),
		BytesDown:     r.bytesDown.Load(),
		DatagramsUp:   r.datagramsUp.Load(),
		DatagramsDown: r.datagramsDown.Load(),
		Dropped:       r.dropped.Load(),
		LastActive:    r.start.Add(r.activeAt()),
	}
}

// What is known of whether the client receives what is sent to its address.
const (
	unanswered int32 = iota // nothing was sent to it
	answered
	confirmed // it has sent something since
)

// received notes a datagram of the client.
func (r *PacketRelay) received(size int) {
	r.touch(r.age())
	if r.cfg.MaxReplyRatio > 0 {
		r.asked.Add(int64(size))
	}
	if r.trust.Load() == answered {
		r.trust.Store(confirmed)
	}
}

// admitsUp tells whether a datagram of the client may be passed on. One that may not has been dropped.
func (r *PacketRelay) admitsUp(size int) bool {
	if r.cfg.AllowUp != nil && !r.cfg.AllowUp(size) {
		r.drop(DropLimited)
		return false
	}
	if r.cfg.MaxReplies > 0 {
		r.requests.Add(1)
	}
	return true
}

// admitsDown is the same for replies.
func (r *PacketRelay) admitsDown(size int) bool {
	switch {
	case !r.mayReply(size):
		r.drop(DropReplyRatio)
	case r.cfg.AllowDown != nil && !r.cfg.AllowDown(size):
		r.drop(DropLimited)
	default:
		return true
	}
	return false
}

// mayReply reports whether a reply of that size is in proportion to what the client has sent.
func (r *PacketRelay) mayReply(size int) bool {
	if r.cfg.MaxReplyRatio <= 0 || r.trust.Load() == confirmed {
		return true
	}
	total := r.granted + int64(size)
	if float64(total) > r.cfg.MaxReplyRatio*float64(r.asked.Load()) {
		return false
	}
	r.granted = total
	return true
}

// repliesLeft is how many more replies the client may be sent, until it sends something itself.
func (r *PacketRelay) repliesLeft() int64 {
	if r.cfg.MaxReplies <= 0 {
		return math.MaxInt64
	}
	requests := min(max(r.requests.Load(), 1), math.MaxInt64/r.cfg.MaxReplies) // a client may ask for days
	return r.cfg.MaxReplies*requests - r.datagramsDown.Load()
}

// sentUp notes a datagram that was sent to the upstream, sentDown one that was sent to the client.
func (r *PacketRelay) sentUp(size int) {
	r.bytesUp.Add(int64(size))
	r.datagramsUp.Add(1)
}

func (r *PacketRelay) sentDown(size int) {
	r.touch(r.age())
	r.bytesDown.Add(int64(size))
	r.datagramsDown.Add(1)
}

// answers is called when a reply is about to be sent. It tells whether it is the first one.
func (r *PacketRelay) answers() (first bool) { return r.trust.CompareAndSwap(unanswered, answered) }

// sameAddr reports whether two upstreams are one.
func sameAddr(a, b *net.UDPAddr) bool {
	return a.IP.Equal(b.IP) && a.Port == b.Port && a.Zone == b.Zone
}

func (r *PacketRelay) drop(why Drop) {
	r.dropped.Add(1)
	if r.cfg.Dropped != nil {
		r.cfg.Dropped(why)
	}
}

// expires returns the age at which a limit ends the relay if nothing moves until then, and which.
func (r *PacketRelay) expires(connected bool) (time.Duration, Reason) {
	return r.cfg.Limits.expires(r.activeAt(), connected, false)
}

func (r *PacketRelay) done(reason Reason, err error) {
	if r.cfg.Done != nil {
		r.cfg.Done(PacketResult{Reason: reason, Err: err, Connect: r.connect, PacketStats: r.Stats()})
	}
}
