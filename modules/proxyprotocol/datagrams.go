package proxyprotocol

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/pires/go-proxyproto"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// proxied is a session of gate+udp, whose listener has taken the headers off.
type proxied interface {
	// Proxied reports whether a load balancer has passed the session on, and the addresses that it names.
	Proxied() (client, local netip.AddrPort, ok bool)
}

// Sends implements [fastpath.Opener].
func (h *Handler) Sends(peer netip.AddrPort) bool { return h.sends(peer) }

// Open implements [fastpath.Opener].
func (*Handler) Open(datagram []byte) (fastpath.Header, error) { return parseDatagram(datagram) }

// FirstOnly implements [fastpath.Opener].
func (h *Handler) FirstOnly() bool { return h.UDP == udpFirst }

// serveDatagrams is Serve for a session of datagrams, which the listener has told from those of other clients.
func (h *Handler) serveDatagrams(a *session.Arrival) (next bool) {
	if conn, ok := a.Accepted().(proxied); ok {
		if client, local, ok := conn.Proxied(); ok {
			if client.IsValid() {
				a.Client, a.Local = client, local
			}
			return true
		}
	}
	return h.admits(a)
}

// admits reports whether a session without a header may go on. It refuses the others.
func (h *Handler) admits(a *session.Arrival) bool {
	switch {
	case h.sends(a.Client): // it began before a reload, when nobody there was to send headers
		h.refuse(a, errNoHeader)
	case h.Others == othersRefuse:
		h.refuseOther(a)
	default:
		return true
	}
	return false
}

// handleDatagrams is Handle for a session of datagrams.
func (h *Handler) handleDatagrams(cx *layer4.Connection, a *session.Arrival, next layer4.Handler) error {
	accepted := a.Accepted()
	conn, ofGate := accepted.(proxied)
	if !ofGate && h.sends(a.Client) {
		return h.handleStock(cx, a, next)
	}
	if !h.serveDatagrams(a) {
		return nil
	}
	if ofGate {
		if client, local, _ := conn.Proxied(); client.IsValid() {
			cx = named(cx, cx.Conn, client, local)
		}
		if conn, ok := accepted.(interface{ TakeProxyFields() []byte }); ok {
			setFields(cx, conn.TakeProxyFields())
		}
	}
	return next.Handle(cx)
}

// named wraps a connection, which then has the addresses of a header.
func named(cx *layer4.Connection, conn net.Conn, client, local netip.AddrPort) *layer4.Connection {
	with := &listeners.Proxied{Conn: conn, Client: net.UDPAddrFromAddrPort(client), Local: net.UDPAddrFromAddrPort(local)}
	cx = cx.Wrap(with)
	cx.Replacer().Set("l4.conn.remote_addr", with.Client)
	cx.Replacer().Set("l4.conn.local_addr", with.Local)
	return cx
}

// setFields sets the placeholders of what a header has beside addresses.
func setFields(cx *layer4.Connection, b []byte) {
	if len(b) == 0 {
		return
	}
	tlvs, err := proxyproto.SplitTLVs(b)
	if err != nil {
		return // the listener has looked at them
	}
	head := header{tlvs: tlvs}
	for field, value := range head.fields() {
		cx.Replacer().Set("portgate.proxy."+field, value)
	}
}

// handleStock serves what a load balancer sends from one address and port over a network of Caddy's, whose server takes all of that for one
// session. So it has to be of one client.
func (h *Handler) handleStock(cx *layer4.Connection, a *session.Arrival, next layer4.Handler) error {
	conn := &stripped{Conn: cx, h: h, a: a}
	a.Waits()
	_ = cx.SetReadDeadline(time.Now().Add(h.timeout))
	head, fields, err := conn.first()
	if err != nil {
		h.refuse(a, err)
		return nil
	}
	_ = cx.SetReadDeadline(time.Time{})
	client, local := head.Client, head.Local
	if !client.IsValid() {
		client, local = a.Client, listeners.AddrPort(cx.LocalAddr())
	}
	for len(cx.MatchingBytes()) > 0 { // what matchers have read would be there twice
		if err := conn.receive(); err != nil {
			break // there is nothing any more, and the next read says so
		}
	}
	cx = named(cx, conn, client, local)
	setFields(cx, fields)
	return next.Handle(cx)
}

// stripped is a session of a load balancer on a network of Caddy's, of which Read gives the payloads.
type stripped struct {
	net.Conn
	h *Handler
	a *session.Arrival

	head    fastpath.Header // of the first datagram
	doubted bool            // it has said two things about who the client is
	waiting [][]byte        // payloads that were received and not read
}

// maxStockDatagram is more than layer4 receives.
const maxStockDatagram = 9000

var stockBuffers = sync.Pool{New: func() any { return new([maxStockDatagram]byte) }}

// first receives the datagram that the session begins with.
func (s *stripped) first() (head fastpath.Header, fields []byte, err error) {
	b := stockBuffers.Get().(*[maxStockDatagram]byte)
	defer stockBuffers.Put(b)
	n, err := s.Conn.Read(b[:])
	if err != nil {
		return head, nil, err
	}
	if head, err = parseDatagram(b[:n]); err != nil {
		return head, nil, err
	}
	fields, head.Fields = append(fields, head.Fields...), nil
	s.head = head
	s.waiting = append(s.waiting, append([]byte(nil), b[head.Size:n]...))
	return head, fields, nil
}

// receive receives a datagram, which may turn out to be none of the session.
func (s *stripped) receive() error {
	b := stockBuffers.Get().(*[maxStockDatagram]byte)
	defer stockBuffers.Put(b)
	n, err := s.Conn.Read(b[:])
	if err != nil {
		return err
	}
	if payload, ok := s.payloadOf(b[:n]); ok {
		s.waiting = append(s.waiting, append([]byte(nil), payload...))
	}
	return nil
}

// errStockClient: a network of Caddy's has one session for each address and port.
var errStockClient = errors.New("expected one client for each address and port of a load balancer, or a gate network")

// payloadOf returns what a datagram behind the first one has for the session. What has nothing is refused.
func (s *stripped) payloadOf(b []byte) (payload []byte, ok bool) {
	if s.doubted {
		return nil, false
	}
	head, err := parseDatagram(b)
	switch {
	case err != nil && s.h.FirstOnly():
		return b, true
	case err == nil && head.Client == s.head.Client && head.Local == s.head.Local:
		return b[head.Size:], true
	case err == nil:
		err = fmt.Errorf("client %s behind client %s: %w", head.Client, s.head.Client, errStockClient)
		s.doubted = s.h.FirstOnly()
	}
	other := session.Arrival{Conn: s.Conn, Network: s.a.Network, Listener: s.a.Listener, Client: s.a.Client}
	other.Begin(s.h.scope).End(session.End{Status: session.StatusBadHeader, Reason: session.ReasonProxyHeader, Err: err})
	return nil, false
}

// Read reads a payload, and what is left of it the next time.
func (s *stripped) Read(b []byte) (int, error) {
	for len(s.waiting) == 0 {
		if err := s.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(b, s.waiting[0])
	if s.waiting[0] = s.waiting[0][n:]; len(s.waiting[0]) == 0 {
		s.waiting = s.waiting[1:]
	}
	return n, nil
}

// Interface guard
var _ fastpath.Opener = (*Handler)(nil)
