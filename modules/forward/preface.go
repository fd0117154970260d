package forward

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/pires/go-proxyproto"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// preface is the option proxy_protocol: what upstreams are told of a client. The zero value tells nothing.
type preface struct {
	version byte
	first   bool // of datagrams the first one only
	given   bool // the config says which datagrams
}

func parsePreface(option string) (p preface, err error) {
	version, which, given := strings.Cut(option, " ")
	switch version {
	case "v1":
		p.version = 1
	case "v2":
		p.version = 2
	default:
		return p, fmt.Errorf("%q: expected v1 or v2", version)
	}
	p.given, p.first = given, which == "first"
	switch {
	case given && which != "each" && which != "first":
		return p, fmt.Errorf("%q: expected each or first", which)
	case given && p.version == 1:
		return p, fmt.Errorf("%q: expected v2 before %s, because version 1 is for TCP alone", option, which)
	}
	return p, nil
}

// parseOwnPreface reads the option of an upstream, which may say that it is told nothing.
func parseOwnPreface(option string) (preface, error) {
	if option == "off" {
		return preface{}, nil
	}
	p, err := parsePreface(option)
	if err != nil && p.version == 0 {
		return p, fmt.Errorf("%q: expected v1, v2 or off", option)
	}
	return p, err
}

func (h *Handler) applyProxyProtocol() (err error) {
	if h.ProxyProtocol == "" {
		return nil
	}
	if h.preface, err = parsePreface(h.ProxyProtocol); err != nil {
		return fmt.Errorf("proxy_protocol: %w", err)
	}
	return nil
}

// checkProxyProtocol refuses version 1 where datagrams are accepted, and an option for datagrams where only streams are.
func (h *Handler) checkProxyProtocol(listen []caddy.NetworkAddress) error {
	if err := h.preface.check(h.ProxyProtocol, listen); err != nil {
		return err
	}
	for i := range h.Upstreams {
		t := &h.Upstreams[i]
		own, _ := parseOwnPreface(t.ProxyProtocol)
		if err := own.check(t.ProxyProtocol, listen); err != nil {
			return fmt.Errorf("upstream: %q: %w", t.Address, err)
		}
	}
	return nil
}

// check does it for one option.
func (p preface) check(option string, listen []caddy.NetworkAddress) error {
	at := slices.IndexFunc(listen, func(addr caddy.NetworkAddress) bool { return gate.Datagrams(addr.Network) })
	switch {
	case p.version == 1 && at >= 0:
		return fmt.Errorf("proxy_protocol: %q: expected v2, as the listen address %q needs: version 1 is for TCP alone", option, listen[at].String())
	case p.given && at < 0 && len(listen) > 0:
		return fmt.Errorf("proxy_protocol: %q: expected a listen address of UDP, but there is only %q", option, listen[0].String())
	}
	return nil
}

// header returns the header for the upstreams of a session, nil where they are told nothing. to is the address that the client has connected to,
// as a load balancer says; where that is not valid, conn tells. A client on a unix socket has no address: then the header is one that says so
// (UNKNOWN in version 1, LOCAL in version 2), because upstreams wait for one.
func (p preface) header(sess *session.Session, conn net.Conn, to netip.AddrPort) []byte {
	if p.version == 0 {
		return nil
	}
	if !to.IsValid() {
		to = listeners.AddrPort(conn.LocalAddr())
	}
	if !sess.Client.IsValid() || !to.IsValid() {
		return p.ofNobody()
	}
	var head *proxyproto.Header
	switch {
	case gate.Datagrams(sess.Network):
		head = proxyproto.HeaderProxyFromAddrs(p.version, net.UDPAddrFromAddrPort(sess.Client), net.UDPAddrFromAddrPort(to))
	default:
		head = proxyproto.HeaderProxyFromAddrs(p.version, net.TCPAddrFromAddrPort(sess.Client), net.TCPAddrFromAddrPort(to))
	}
	b, _ := head.Format() // fails only for addresses and ports that a socket can't have
	return b
}

// ofNobody returns a header that says that there is no client, nil where upstreams are told nothing.
func (p preface) ofNobody() []byte {
	if p.version == 0 {
		return nil
	}
	head := proxyproto.Header{Version: p.version, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	b, _ := head.Format() // fails only for versions that do not exist
	return b
}
