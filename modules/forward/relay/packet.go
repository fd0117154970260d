package relay

import (
	"context"
	"fmt"
	"math"
	"net"
	"sync/atomic"
	"time"
)

// The further reasons of a [PacketRelay]. [PacketClient.Attach] may give others.
const (
	// MaxReplies: as many replies as [PacketConfig.MaxReplies] allows were sent.
	MaxReplies Reason = "max_replies"
	// Evicted: the network had ended the session before the relay got it.
	Evicted Reason = "evicted"
)

// askInterval is how often Next is asked while the upstream refuses datagrams. It is well under the two seconds within which an
// upstream that has moved is found again.
const askInterval = time.Second

// Drop says why a datagram was not passed on.
type Drop string

// The reasons of a [PacketRelay] to drop a datagram.
const (
	// DropQueueFull: the client has sent more than is kept while there is no upstream yet.
	DropQueueFull Drop = "queue_full"
	// DropUpstreamFull: the socket to the upstream had no room.
	DropUpstreamFull Drop = "upstream_full"
	// DropUpstreamRefused: nobody listens on the upstream's port (ICMP port unreachable).
	DropUpstreamRefused Drop = "upstream_refused"
	// DropReplyRatio: MaxReplyRatio does not allow the reply.
	DropReplyRatio Drop = "reply_ratio"
	// DropLimited: AllowUp or AllowDown has refused it.
	DropLimited Drop = "limited"
	// DropSendFailed: the system could not send it.
	DropSendFailed Drop = "send_failed"
)

// PacketClient is a client's session on a packet listener that event loops can serve. Goroutines serve all other clients:
// they Read and Write one datagram at a time.
type PacketClient interface {
	net.Conn

	// Attach hands the session over. From then on the network calls receive with every datagram of the client, one call
	// at a time and in order, beginning with those that came before. receive does not block, and b is valid during the
	// call. Where receive reports false, the relay is about to end, and b and what follows is for another session.
	// The network calls closed at most once, without locks, when it ends the session, and says why. After Close neither
	// is called any more. Attach reports false where the session has ended already.
	Attach(receive func(b []byte) (taken bool), closed func(reason string)) bool

	// ReplyPath returns how to send replies: by sendmsg(2) on the non-blocking descriptor, to the address name and with the
	// control message. All are valid until Close.
	ReplyPath() (fd int, name, control []byte)

	// Answered is called once, just before the first reply is sent: the client may send something right after it.
	Answered()

	// ServedBy is called once, after Attach. The network may ask the relay then, until Close, whether the client waits for an
	// answer.
	ServedBy(relay interface {
		Unanswered(within time.Duration) bool
	})
}

// PacketConfig is what a relay of datagrams has to do.
type PacketConfig struct {
	// Client is the session of the client. It is closed after Done, so that the network has room for another session only
	// once this one is accounted for.
	Client net.Conn

	// Prefetched are datagrams that were read from Client before. They are sent to the upstream first. The relay owns them
	// from Run on. It is not used with a PacketClient, whose receive gets them.
	Prefetched [][]byte

	// Preface is what the upstream is told of the client. It may be nil.
	Preface *Preface

	// PrefaceOf returns it for the upstream whose address Next has returned last, in place of Preface. Event loops call it: it must not
	// block. Nil: all upstreams are told the same.
	PrefaceOf func() *Preface

	// Next returns the address to send to: a *net.UDPAddr. It may block: no event loop calls it. ctx ends when the relay is
	// closed. Where the address can't be used, Next is called again with the error, until it returns an error itself. That
	// ends a session that never had an upstream.
	//
	// While the session has an upstream, Next is called again with a [*Lost] where that can't be reached, where its socket is of no
	// use any more, and, if Named is set, where it stays silent. Next may return the same address again,
	// perhaps after another look-up. Where it returns an error the session keeps its upstream, and Next is called again
	// later. Next is called at most once a second for that, except where an upstream has never answered: then it is called
	// at once, once for each address that refuses, and the last datagrams, up to 4 of 4 KiB together, are sent again to
	// the next upstream. What is sent again counts once in PacketStats. Calls do not overlap, but the last one may still run after Done, with ctx ended.
	Next func(ctx context.Context, failed error) (net.Addr, error)

	// Named: Next looks names up, so that an upstream which stays silent may have moved.
	Named bool

	// Attempt is called when it is known whether an upstream works: with nil when its first reply has come, with an error
	// when its address can't be used or it refuses a datagram (then before Next is called with that error). took is the
	// time since the socket was opened. What is due to a lack of descriptors, memory or ports of this system is not
	// reported, and neither is an upstream that sends nothing. Event loops call it: it must not block. It may be nil.
	Attempt func(addr net.Addr, took time.Duration, err error)

	// Track learns which sockets are opened to upstreams. It may be nil.
	Track Tracker

	// Local is what the socket needs of this system. It may be nil. Where no port is left, the session waits for one, for up to
	// Limits.Connect, and a Client that is a [RoomMaker] makes room.
	Local *Local

	// Limits are the time limits. Connect bounds how long to wait for a descriptor where the process has none left. HalfClose
	// is not used.
	Limits Limits

	// MaxReplies ends the session when so many replies were sent for each datagram of the client, as proxy_responses of
	// nginx does: with 1, a client that has several questions open gets all answers. Zero: no limit.
	MaxReplies int64

	// MaxReplyRatio limits what is sent to a client whose address may be forged: so many bytes for each byte that came from
	// it, until it has sent a datagram after a reply. Replies beyond are dropped. Zero: no limit.
	MaxReplyRatio float64

	// AllowUp and AllowDown are called for each datagram before it is sent to the upstream or to the client. Where they report
	// false it is dropped. They must not block. Nil: all are allowed.
	AllowUp, AllowDown func(size int) bool

	// Name identifies the session in the message of a panic. It may be nil.
	Name fmt.Stringer

	// Dropped is called for each datagram that is dropped, by the goroutine that would have sent it. It must not block. It may
	// be nil.
	Dropped func(Drop)

	// Done is called exactly once, when the socket to the upstream is closed. No event loop calls it: it may block.
	Done func(PacketResult)
}

// PacketResult is how a relay of datagrams ended.
type PacketResult struct {
	Reason Reason

	// Err says why there was no upstream. It is nil where there was one.
	Err error

	// Connect is the time from NewPacket until there was an upstream, or Next had none. It is zero where the relay was closed
	// before, unless Err says that Next was being called.
	Connect time.Duration

	PacketStats
}

// PacketStats is what a relay of datagrams has moved so far.
type PacketStats struct {
	// Up counts what was sent to the upstream, Down what was sent to the client.
	BytesUp, BytesDown         int64
	DatagramsUp, DatagramsDown int64

	// Dropped counts the datagrams that were not passed on, in both directions.
	Dropped int64

	// LastActive is when the last datagram came from the client or was sent to it, or when the upstream was
	// connected.
	LastActive time.Time
}

// PacketRelay is one session of datagrams, which are passed on whole, from 0 to 65,507 bytes. Make it with [NewPacket].
//
// An upstream that refuses datagrams does not end the session: it may come back, at the same address or at another.
type PacketRelay struct {
	life
	cfg PacketConfig

	bytesUp, bytesDown         atomic.Int64
	datagramsUp, datagramsDown atomic.Int64
	dropped                    atomic.Int64

	trust    atomic.Int32
	silence  atomic.Int64 // since which age, in ns, the client has had no reply; 0 after a reply
	requests atomic.Int64 // datagrams from the client that may be passed on, where MaxReplies is set
	asked    atomic.Int64 // bytes from the client, where MaxReplyRatio is set
	granted  int64        // bytes of replies that MaxReplyRatio has allowed; belongs to whoever sends replies
}

// NewPacket prepares a relay of datagrams. Nothing happens before [PacketRelay.Run].
func NewPacket(cfg PacketConfig) *PacketRelay {
	return &PacketRelay{cfg: cfg, life: life{start: time.Now()}}
}

// Run finds the upstream and moves datagrams. It may return long before the end, as soon as it does not need the caller's
// goroutine any more: what has to happen at the end belongs in Done.
func (r *PacketRelay) Run() {
	if r.runLoop() {
		return
	}
	r.runGoroutines()
}

// Start is Run for a caller that can't wait, such as a goroutine that receives datagrams. Only the first call of Next is made
// in the caller's goroutine, so Next must not block then.
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

// Unanswered reports whether the client's last datagram came after the last reply, and within that time. A client that was never
// sent a reply, in a session that is older, does not expect one. It may be called at any time.
func (r *PacketRelay) Unanswered(within time.Duration) bool {
	now, last := r.age(), r.activeAt()
	return last&towardsClient == 0 && now-last < within && (r.trust.Load() != unanswered || now < within)
}

// towardsClient is set in the times at which datagrams were sent to the client, and not in those at which they came from it: the
// nanosecond is not missed.
const towardsClient time.Duration = 1

// trust: whether the client is known to receive what is sent to its address.
const (
	unanswered int32 = iota // it was sent no reply
	answered
	confirmed // it has sent something after a reply
)

// received notes a datagram of the client. It reports true when the upstream has left the client's datagrams without a reply for silentFor, and
// after as long again.
func (r *PacketRelay) received(size int) (silent bool) {
	age := r.age()
	r.touch(age &^ towardsClient)
	if since := r.silence.Load(); since == 0 {
		r.silence.Store(max(int64(age), 1))
	} else if age-time.Duration(since) >= silentFor {
		r.silence.Store(int64(age))
		silent = true
	}
	if r.cfg.MaxReplyRatio > 0 {
		r.asked.Add(int64(size))
	}
	if r.trust.Load() == answered {
		r.trust.Store(confirmed)
	}
	return silent
}

// heard notes that something has come from the upstream.
func (r *PacketRelay) heard() {
	if r.silence.Load() != 0 {
		r.silence.Store(0)
	}
}

// admitsUp reports whether a datagram of the client may be passed on. If not it counts as dropped.
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

// admitsDown is admitsUp for replies.
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

// mayReply reports whether MaxReplyRatio allows a reply of that size.
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

// repliesLeft is how many more replies MaxReplies allows, until the client sends another datagram.
func (r *PacketRelay) repliesLeft() int64 {
	if r.cfg.MaxReplies <= 0 {
		return math.MaxInt64
	}
	requests := min(max(r.requests.Load(), 1), math.MaxInt64/r.cfg.MaxReplies) // without overflow, however long the session lasts
	return r.cfg.MaxReplies*requests - r.datagramsDown.Load()
}

// sentUp notes a datagram that was sent to the upstream.
func (r *PacketRelay) sentUp(size int) {
	r.bytesUp.Add(int64(size))
	r.datagramsUp.Add(1)
}

// sentDown notes a datagram that was sent to the client.
func (r *PacketRelay) sentDown(size int) {
	r.touch(r.age() | towardsClient)
	r.bytesDown.Add(int64(size))
	r.datagramsDown.Add(1)
}

// answers is called before a reply is sent, and reports whether it is the first one.
func (r *PacketRelay) answers() (first bool) { return r.trust.CompareAndSwap(unanswered, answered) }

// sameAddr reports whether two addresses are the same.
func sameAddr(a, b *net.UDPAddr) bool {
	return a.IP.Equal(b.IP) && a.Port == b.Port && a.Zone == b.Zone
}

// dropRefused counts n datagrams that were refused and not sent to another upstream.
func (r *PacketRelay) dropRefused(n int) {
	for range n {
		r.drop(DropUpstreamRefused)
	}
}

func (r *PacketRelay) drop(why Drop) {
	r.dropped.Add(1)
	if r.cfg.Dropped != nil {
		r.cfg.Dropped(why)
	}
}

// expires returns the age at which a time limit ends the relay if nothing is moved until then, and the limit.
func (r *PacketRelay) expires(connected bool) (time.Duration, Reason) {
	return r.cfg.Limits.expires(r.activeAt(), connected, false)
}

func (r *PacketRelay) done(reason Reason, err error) {
	if r.cfg.Done != nil {
		r.cfg.Done(PacketResult{Reason: reason, Err: err, Connect: r.connect, PacketStats: r.Stats()})
	}
}
