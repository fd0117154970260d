package network

import (
	"bytes"
	"errors"
	"net/netip"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// A load balancer sends the datagrams of many clients from one socket, with a PROXY protocol header in front of each. The receive loop takes
// the header off and tells their sessions apart by what it says, so that each has its place in the table, its limits and its end, as the
// sessions of clients that come directly.

// opening is how the datagrams of load balancers are taken on behalf of a config. It belongs to the receive loop.
type opening struct {
	fastpath.Opener
	scope      *session.Scope
	listener   string
	keepFields bool // layer4 serves the sessions, which has placeholders

	logged struct { // of those that were refused within a second
		since time.Time
		count int
	}
}

// maxRefusedPerSecond is how many datagrams without a valid header get an entry in the access log. They are counted all, and each of them costs
// a session that ends as it begins.
const maxRefusedPerSecond = 10

// errHeaderOfFirst: the session that a datagram belongs to has ended, or never was one.
var errHeaderOfFirst = errors.New("expected a PROXY protocol header in the first datagram of a session")

// errOtherClient: whoever sends through the load balancer may have written that header.
var errOtherClient = errors.New("expected no PROXY protocol header for another client behind the first datagram of a session")

// refuse counts a datagram without a valid header.
func (o *opening) refuse(f *fiveTuple, settings *settings, err error) {
	settings.counts.Dropped[listeners.DropProxyHeader].Add(1)
	if now := time.Now(); now.Sub(o.logged.since) >= time.Second {
		o.logged.since, o.logged.count = now, 0
	}
	if o.logged.count++; o.scope == nil || o.logged.count > maxRefusedPerSecond {
		return
	}
	a := session.Arrival{Network: "udp", Listener: o.listener, Client: f.addrPort()}
	a.Begin(o.scope).End(session.End{Status: session.StatusBadHeader, Reason: session.ReasonProxyHeader, Err: err})
}

// proxiedKey tells one session from another of those that load balancers pass on.
type proxiedKey struct {
	peer                  fiveTuple // of the load balancer
	client, local         [16]byte  // that the header names; zeros where it speaks for itself, or where only the first datagram has a header
	clientPort, localPort uint16
	first                 uint32 // 1: only the first datagram has a header
}

// proxied is what the header of a load balancer has said of a session.
type proxied struct {
	key           proxiedKey
	client, local netip.AddrPort
	fields        []byte // for placeholders, until they are taken
	doubted       bool   // see openAgain; belongs to the receive loop
}

// datagram is one that is being delivered.
type datagram struct {
	tuple   *fiveTuple
	payload []byte

	// What follows is for one that a load balancer sends.
	proxied bool
	key     proxiedKey
	header  fastpath.Header
	joins   bool // it has no header, so it must not begin a session
}

// takeHeader takes the header off.
func (d *datagram) takeHeader(h *fastpath.Header) { d.header, d.payload = *h, d.payload[h.Size:] }

// open takes the header off the datagram of a load balancer. It reports false where the datagram was refused.
func (s *packetSocket) open(o *opening, d *datagram, settings *settings) bool {
	if !o.Sends(d.tuple.addrPort()) {
		return true
	}
	d.proxied, d.key.peer = true, *d.tuple
	h, err := o.Open(d.payload)
	if o.FirstOnly() {
		d.key.first = 1
		return s.openFirst(o, d, settings, &h, err)
	}
	if err != nil {
		o.refuse(d.tuple, settings, err)
		return false
	}
	d.takeHeader(&h)
	if h.Client.IsValid() {
		d.key.client, d.key.clientPort = h.Client.Addr().As16(), h.Client.Port()
		d.key.local, d.key.localPort = h.Local.Addr().As16(), h.Local.Port()
	}
	return true
}

// openFirst is open where only the first datagram of a session has a header. What is behind that one is the client's, and may look like a
// header that names somebody else.
func (s *packetSocket) openFirst(o *opening, d *datagram, settings *settings, h *fastpath.Header, err error) bool {
	s.mu.Lock()
	c := s.table.proxied[d.key]
	s.mu.Unlock()
	switch {
	case c != nil && c.proxied.doubted:
		settings.counts.Dropped[listeners.DropProxyHeader].Add(1)
		return false
	case c != nil && err != nil:
		d.joins = true
		return true
	case c != nil && (c.proxied.client != h.Client || c.proxied.local != h.Local):
		// Either a client pretends to be somebody else, or the load balancer uses a port again for another one. Nobody can tell, so
		// nothing more is taken from there until the session has ended.
		c.proxied.doubted, err = true, errOtherClient
	}
	if err != nil {
		o.refuse(d.tuple, settings, err)
		return false
	}
	d.takeHeader(h)
	return true
}

// sessionOf returns the session that a datagram belongs to, nil where there is none.
func (t *table) sessionOf(d *datagram) *PacketSession {
	if d.proxied {
		return t.proxied[d.key]
	}
	return t.sessions[*d.tuple]
}

// clientKey is that of the client whose datagram it is.
func (d *datagram) clientKey() clientKey { return clientKeyOf(d.tuple, d.header.Client) }

func (c *PacketSession) clientKey() clientKey {
	if c.proxied != nil {
		return clientKeyOf(&c.tuple, c.proxied.client)
	}
	return c.tuple.clientKey()
}

// clientKeyOf returns the key of a client that a load balancer names, and of the peer where it names none.
func clientKeyOf(peer *fiveTuple, named netip.AddrPort) clientKey {
	if !named.IsValid() {
		return peer.clientKey()
	}
	f := fiveTuple{client: named.Addr().As16()}
	return f.clientKey()
}

// proxiedBy returns what is to be noted of a session that begins with this datagram, nil where no load balancer has sent it.
func (d *datagram) proxiedBy(o *opening) *proxied {
	if !d.proxied {
		return nil
	}
	p := &proxied{key: d.key, client: d.header.Client, local: d.header.Local}
	if o.keepFields {
		p.fields = bytes.Clone(d.header.Fields)
	}
	return p
}

// Proxied reports whether a load balancer has passed the session on, and the addresses that its header names: they are not valid where it
// speaks for itself. The session's own addresses are those of the load balancer's socket and of ours.
func (c *PacketSession) Proxied() (client, local netip.AddrPort, ok bool) {
	if c.proxied == nil {
		return netip.AddrPort{}, netip.AddrPort{}, false
	}
	return c.proxied.client, c.proxied.local, true
}

// Proxied is [PacketSession.Proxied].
func (c *PacketConn) Proxied() (client, local netip.AddrPort, ok bool) { return c.session.Proxied() }

// TakeProxyFields returns what the header of the first datagram had beside addresses, once.
func (c *PacketConn) TakeProxyFields() (fields []byte) {
	if p := c.session.proxied; p != nil {
		fields, p.fields = p.fields, nil
	}
	return fields
}
