package relay

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// effect is what an error of a socket that is connected to an upstream means for its session of datagrams.
type effect uint8

const (
	effectNone     effect = iota // no error
	effectLost                   // the datagram is lost; the session goes on as it is
	effectFull                   // the same, because the system has no room for it now
	effectTooLarge               // datagrams of this size are lost on the way; the next ones are sent in fragments
	effectRefused                // the upstream can't be reached: another one is asked for
	effectStale                  // the socket is of no use any more: the upstream is looked up again, and another socket opened
)

// errorEffects says it of each error, for the two places that an error comes from:
//
//   - reported: the network, by an ICMP message. Linux keeps it for the socket (SO_ERROR in socket(7)), and the next call that sends or
//     receives returns it in place of what it was called for. A socket that is connected gets only those that the kernel takes for
//     lasting (ip(7), udp(7); icmp_err_convert in net/ipv4/icmp.c, icmpv6_err_convert in net/ipv6/icmp.c): "host unreachable" is not among
//     them, for example.
//   - own: this system, which could not send the datagram (ip(7), ipv6(7), send(2)).
//
// What is not in the table costs one datagram.
var errorEffects = map[syscall.Errno]struct{ reported, own effect }{
	syscall.ECONNREFUSED: {effectRefused, effectRefused}, // port unreachable: nobody listens
	syscall.ENOPROTOOPT:  {effectRefused, effectRefused}, // protocol unreachable
	syscall.EHOSTDOWN:    {effectRefused, effectStale},   // host unknown
	syscall.EHOSTUNREACH: {effectRefused, effectStale},   // a router's filter; own: a route of the type unreachable
	syscall.EACCES:       {effectRefused, effectStale},   // the same for IPv6; own: a route of the type prohibit
	syscall.ENETUNREACH:  {effectRefused, effectStale},   // network unknown; own: no route, or (newer Linux) the source address is gone
	syscall.EMSGSIZE:     {effectTooLarge, effectLost},   // fragmentation needed, packet too big

	syscall.EINVAL:        {effectLost, effectStale},  // the source address is gone (older Linux), or a route of the type blackhole
	syscall.EADDRNOTAVAIL: {effectLost, effectStale},  // the source address is gone
	syscall.ENETDOWN:      {effectLost, effectStale},  // the interface is down
	syscall.ENODEV:        {effectLost, effectStale},  // the interface is gone
	syscall.ENXIO:         {effectLost, effectStale},  // the same
	syscall.ECONNABORTED:  {effectStale, effectStale}, // somebody has closed the socket from outside: ss -K (sock_diag(7))
	syscall.EDESTADDRREQ:  {effectStale, effectStale}, // the same, from then on

	syscall.EAGAIN:  {effectFull, effectFull}, // the socket's buffer is full
	syscall.ENOBUFS: {effectFull, effectFull}, // the interface's queue is full
	syscall.ENOMEM:  {effectFull, effectFull},
	syscall.EPERM:   {effectLost, effectLost}, // a firewall of this system drops it, or its table of connections is full
}

// reportedEffect is the effect of an error that a call returns in place of what was sent before.
func reportedEffect(errno syscall.Errno) effect { return errorEffects[errno].reported.orLost(errno) }

// ownEffect is the effect of an error that concerns the datagram itself.
func ownEffect(errno syscall.Errno) effect { return errorEffects[errno].own.orLost(errno) }

func (e effect) orLost(errno syscall.Errno) effect {
	if e == effectNone && errno != 0 {
		return effectLost
	}
	return e
}

// sendTwice is called when a datagram could not be sent. Where the network may have reported the error, of another datagram, it is sent
// again. sendTwice returns the error that was reported and the one that keeps this datagram from being sent, 0 for none.
func sendTwice(first syscall.Errno, send func() syscall.Errno) (reported, own syscall.Errno) {
	if e := reportedEffect(first); e == effectLost || e == effectFull {
		return 0, first
	}
	second := send()
	if second == first && ownEffect(first) != effectRefused {
		return 0, first // nobody has reported it
	}
	return first, second
}

// errnoOf returns the system's error in an error of the net package; 0 if there is none.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var errno syscall.Errno // allocated, so not before it is needed
	_ = errors.As(err, &errno)
	return errno
}

// trouble is why a session that has an upstream asks Next again. Of two the larger one counts.
type trouble uint8

const (
	troubleNone    trouble = iota
	troubleSilent          // the client goes on sending, and nothing has come back for silentFor
	troubleRefused         // effectRefused
	troubleStale           // effectStale, or the socket's source address is no address of this machine any more
)

// Lost is the error with which Next is called while the session has an upstream.
type Lost struct {
	// Err is what has happened.
	Err error

	// Refused: the upstream can't be reached, and Next is to return another one if it has one. Otherwise the upstream may be reached
	// at another address, or from another one: Next is to return the same upstream, at the address that it has now.
	Refused bool
}

func (l *Lost) Error() string { return l.Err.Error() }

// Unwrap returns Err.
func (l *Lost) Unwrap() error { return l.Err }

// silentFor is how long a client goes on sending without a reply until Next is asked whether the upstream has moved. It is less than half a
// minute, so that a Next which answers what it knows, and only then looks the name up, has the new address within a minute all the same. Only tests change
// it.
var silentFor = 20 * time.Second

func (t trouble) lost(target *net.UDPAddr, errno syscall.Errno) *Lost {
	switch {
	case t == troubleSilent:
		return &Lost{Err: fmt.Errorf("%s has sent nothing for %s", target, silentFor)}
	case errno == 0:
		return &Lost{Err: fmt.Errorf("%s was connected from an address that this machine does not have any more", target)}
	}
	return &Lost{Err: dialError(target, errno), Refused: t == troubleRefused}
}

// backlog is datagrams of a client that wait for a socket.
type backlog struct {
	datagrams [][]byte
	size      int // in bytes
}

// How many datagrams a session keeps until there is a socket to the upstream, and how many bytes of them. The network keeps
// as much of a session that nobody reads.
const (
	waitingMax      = 64
	waitingMaxBytes = 128 << 10
)

// add keeps a copy of b. It reports false where there is no room.
func (w *backlog) add(b []byte) bool {
	if len(w.datagrams) == waitingMax || w.size+len(b) > waitingMaxBytes {
		return false
	}
	w.datagrams = append(w.datagrams, append(make([]byte, 0, len(b)), b...))
	w.size += len(b)
	return true
}

// take empties the backlog.
func (w *backlog) take() [][]byte {
	datagrams := w.datagrams
	w.datagrams, w.size = nil, 0
	return datagrams
}
