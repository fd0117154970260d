// Package proxyprotocol is the handler that takes a client's address from the PROXY protocol header of a load balancer.
package proxyprotocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/refusal"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Values of the option `others`.
const (
	othersAllow  = "allow"
	othersRefuse = "refuse"
)

// Values of the option `udp`.
const (
	udpEach  = "each"
	udpFirst = "first"
)

// name is the handler's in a config.
const name = "accept_proxy"

// defaultTimeout is also the longest time for which a connection takes a descriptor before anything is known of it.
const defaultTimeout = 3 * time.Second

// Handler takes the client's address from a PROXY protocol header, version 1 or 2, that a load balancer sends at the
// beginning of a connection. Handlers behind it see the client that the header names. A header is complete and valid, or
// the connection ends before anything else is done for it. Over UDP, where there is only version 2, the header and the payload are
// in the same datagram, and a load balancer may send those of many clients from one socket.
type Handler struct {
	// From lists who sends headers: addresses and prefixes. A connection from there must begin with a header. Nobody
	// else is believed. A peer on a unix socket is believed too: who may connect is a matter of the socket's permissions.
	From []string `json:"from,omitempty"`

	// Others is what happens to clients from elsewhere: `allow` serves them under their own address, and what they send
	// is not looked at; `refuse` closes their connections. Default: `allow`.
	Others string `json:"others,omitempty"`

	// Timeout is how long the header may take from the beginning of the connection until it is complete. Default: 3s.
	Timeout *caddy.Duration `json:"timeout,omitempty"`

	// UDP says which datagrams of a load balancer have a header. `each`: all. A datagram without a valid one is dropped, and clients are told
	// apart by their headers. `first`: the first one from each address and port of the load balancer; what comes from there
	// afterwards belongs to that client, until the session has ended. Then who sends through the load balancer may begin another one with a
	// header of its own making. Default: each.
	UDP string `json:"udp,omitempty"`

	from    []netip.Prefix
	timeout time.Duration
	scope   *session.Scope

	written string // the JSON that this handler was made of
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers." + name, New: func() caddy.Module { return new(Handler) }}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	defer func() { err = caddyfile.WithoutPasswords(err) }()
	if err := h.check(); err != nil {
		return err
	}
	at := placement.Find(ctx, name, h.written)
	h.written = "" // the finding has it, once for all that are alike
	if err := placement.Check(ctx, at); err != nil {
		return err
	}
	if err := h.checkUDP(at); err != nil {
		return err
	}
	if h.scope, err = session.NewScope(ctx, 0, 0); err != nil {
		return err
	}
	fastpath.Offer(ctx, at, h)
	return fastpath.OfferOpener(ctx, at, name, h)
}

// check fills in what the config leaves open and refuses what can't work.
func (h *Handler) check() error {
	if len(h.From) == 0 {
		return fmt.Errorf("from: %w", errNobody)
	}
	repl := caddy.NewReplacer()
	for _, text := range h.From {
		prefix, err := parsePrefix(repl.ReplaceAll(text, ""))
		if err != nil {
			return fmt.Errorf("from: %w", err)
		}
		h.from = append(h.from, prefix)
	}
	if h.Others != "" {
		if err := caddyfile.OneOf(h.Others, othersAllow, othersRefuse); err != nil {
			return fmt.Errorf("others: %w", err)
		}
	}
	if h.UDP != "" {
		if err := caddyfile.OneOf(h.UDP, udpEach, udpFirst); err != nil {
			return fmt.Errorf("udp: %w", err)
		}
	}
	h.timeout = defaultTimeout
	if h.Timeout != nil {
		h.timeout = time.Duration(*h.Timeout)
	}
	if h.timeout <= 0 {
		return fmt.Errorf("timeout: %w", errNoTimeout(h.timeout.String()))
	}
	return nil
}

// checkUDP refuses the option for datagrams where only streams are accepted.
func (h *Handler) checkUDP(at *placement.Finding) error {
	listen := at.Listens()
	datagrams := slices.ContainsFunc(listen, func(addr caddy.NetworkAddress) bool { return gate.Datagrams(addr.Network) })
	if h.UDP != "" && !datagrams && len(listen) > 0 {
		return fmt.Errorf("udp: %q: expected a listen address of UDP, but there is only %q", h.UDP, listen[0].String())
	}
	return nil
}

var errNobody = errors.New("expected at least one prefix, such as 10.0.0.0/8: those who send PROXY protocol headers")

// errNoTimeout: every wait for a client has to end.
func errNoTimeout(value string) error {
	return fmt.Errorf("%q: expected a duration of more than 0", value)
}

// parsePrefix reads an address or a prefix. A prefix with bits behind its length is an error, because it may be meant as
// an address.
func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if addr, failed := netip.ParseAddr(text); failed == nil && addr.Zone() == "" {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q: expected an address or a prefix, such as 10.0.0.0/8", text)
	}
	if prefix.Addr().Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q: expected a prefix of at least 96 bits, or an IPv4 prefix", text)
		}
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	if prefix != prefix.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q: expected %q, or the address alone", text, prefix.Masked())
	}
	return prefix, nil
}

// sends reports whether a peer is one that sends headers.
func (h *Handler) sends(peer netip.AddrPort) bool {
	if !peer.IsValid() {
		return true // on a unix socket
	}
	addr := peer.Addr().WithZone("")
	for _, prefix := range h.from {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// Handle reads the header, and passes on a connection that has the addresses of the header.
func (h *Handler) Handle(cx *layer4.Connection, next layer4.Handler) error {
	a := session.ArrivalOf(cx)
	if gate.Datagrams(a.Network) {
		return h.handleDatagrams(cx, a, next)
	}
	if !h.sends(a.Client) {
		if h.Others == othersRefuse {
			h.refuseOther(a)
			return nil
		}
		return next.Handle(cx)
	}
	a.Waits()
	_ = cx.SetReadDeadline(time.Now().Add(h.timeout))
	head, err := read(cx)
	if err != nil {
		h.refuse(a, err)
		return nil
	}
	_ = cx.SetReadDeadline(time.Time{})
	if head.client.IsValid() {
		proxied := &listeners.Proxied{
			Conn: cx.Conn, Client: net.TCPAddrFromAddrPort(head.client), Local: net.TCPAddrFromAddrPort(head.local),
		}
		cx = cx.Wrap(proxied)
		cx.Replacer().Set("l4.conn.remote_addr", proxied.Client)
		cx.Replacer().Set("l4.conn.local_addr", proxied.Local)
	}
	for field, value := range head.fields() {
		cx.Replacer().Set("portgate.proxy."+field, value)
	}
	return next.Handle(cx)
}

// Serve serves a connection of somebody who sends no header.
func (h *Handler) Serve(a *session.Arrival) (next bool) {
	if gate.Datagrams(a.Network) {
		return h.serveDatagrams(a)
	}
	if h.sends(a.Client) {
		return false // Await has it
	}
	if h.Others == othersRefuse {
		h.refuseOther(a)
		return false
	}
	return true
}

// Await implements [fastpath.Waiter]: it reads the header of a connection. Most have arrived by then; for the others a
// goroutine waits.
func (h *Handler) Await(a *session.Arrival, resume func(*session.Arrival)) (awaited bool) {
	if gate.Datagrams(a.Network) || !h.sends(a.Client) {
		return false
	}
	if conn, ok := a.Conn.(peeker); ok {
		if head, complete, err := peek(conn); complete {
			h.proceed(a, head, err, resume)
			return true
		}
	}
	waiting := a.Clone()
	waiting.Waits()
	go func() {
		_ = waiting.Conn.SetReadDeadline(time.Now().Add(h.timeout))
		head, err := read(waiting.Conn)
		_ = waiting.Conn.SetReadDeadline(time.Time{})
		h.proceed(waiting, head, err, resume)
	}()
	return true
}

func (h *Handler) proceed(a *session.Arrival, head header, err error, resume func(*session.Arrival)) {
	if err != nil {
		h.refuse(a, err)
		return
	}
	if head.client.IsValid() {
		a.Client, a.Local = head.client, head.local
	}
	resume(a)
}

// refuse ends a connection whose header is not valid, or did not come.
func (h *Handler) refuse(a *session.Arrival, err error) {
	reason := session.ReasonProxyHeader
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("expected a complete PROXY protocol header within %s: %w", h.timeout, err)
	}
	end := session.End{Status: session.StatusBadHeader, Reason: reason, Err: err}
	refusal.Do(refusal.Way{Action: refusal.Close}, a, a.Begin(h.scope), end)
}

// refuseOther ends a connection from somebody who may not connect without a load balancer.
func (h *Handler) refuseOther(a *session.Arrival) {
	s := a.Begin(h.scope)
	s.SetRule(name + " others refuse")
	end := session.End{Status: session.StatusDenied, Reason: session.ReasonDenied}
	refusal.Do(refusal.Way{Action: refusal.Close}, a, s, end)
}

// Cleanup ends nothing: connections whose header is awaited go on.
func (h *Handler) Cleanup() error {
	if h.scope != nil {
		h.scope.Replaced()
	}
	return nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	accept_proxy {
//		from    <prefix>...
//		others  allow|refuse
//		timeout <duration>
//		udp     each|first
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	err := caddyfile.Unmarshal(d, nil,
		caddyfile.Option{Name: "from", Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
			h.From = append(h.From, args...)
			for _, text := range args {
				if strings.Contains(text, "{") {
					continue // known when the config is loaded
				}
				if _, err := parsePrefix(text); err != nil {
					return err
				}
			}
			return nil
		}},
		caddyfile.Option{Name: "others", Min: 1, Max: 1, Set: func(args []string) error {
			h.Others = args[0]
			return caddyfile.OneOf(args[0], othersAllow, othersRefuse)
		}},
		caddyfile.Option{Name: "timeout", Min: 1, Max: 1, Set: func(args []string) error {
			parsed, err := caddyfile.ParseDuration(args[0])
			h.Timeout = &parsed
			if err == nil && parsed == 0 {
				err = errNoTimeout(args[0])
			}
			return err
		}},
		caddyfile.Option{Name: "udp", Min: 1, Max: 1, Set: func(args []string) error {
			h.UDP = args[0]
			return caddyfile.OneOf(args[0], udpEach, udpFirst)
		}},
	)
	if err != nil {
		return err
	}
	if len(h.From) == 0 {
		return d.Errf("from: %w", errNobody)
	}
	return nil
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (h *Handler) UnmarshalJSON(data []byte) error {
	type options Handler
	h.written = string(data)
	return caddyfile.UnmarshalJSON(data, (*options)(h))
}

// Interface guards
var (
	_ caddy.Provisioner          = (*Handler)(nil)
	_ caddy.CleanerUpper         = (*Handler)(nil)
	_ layer4.NextHandler         = (*Handler)(nil)
	_ fastpath.Waiter            = (*Handler)(nil)
	_ caddycaddyfile.Unmarshaler = (*Handler)(nil)
	_ json.Unmarshaler           = (*Handler)(nil)
)
