// Package check finds out by itself whether upstreams work: it connects to them now and then, sends what it is told to, and looks at the
// reply. It knows how to send and judge, when to check, and which addresses; what the results mean for sessions is the matter of
// package upstream.
package check

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// The kinds of checks.
const (
	TCP  = "tcp"  // connects
	Send = "send" // sends a text, and expects one
	HTTP = "http" // asks for a page
	DNS  = "dns"  // asks for a name
	UDP  = "udp"  // sends a datagram
)

// Spec says what to check and when. Equal ones are one check. Parts that are not named by the kind are empty.
type Spec struct {
	Probe
	Interval, Timeout time.Duration
	upstream.Thresholds
}

// Probe says what is sent to an address, and which reply passes.
type Probe struct {
	Kind string
	// Text is what [Send] sends, with escapes as in [ParseText], what [UDP] sends, in hexadecimal digits, the path of [HTTP], and the
	// name of [DNS].
	Text string
	// Expect is a regular expression that the reply to [Send] or [UDP] has to match. Empty for UDP: any reply passes, and so does none, unless
	// the system reports that the datagram was refused.
	Expect string
	// Status are the status codes of [HTTP] that pass: 200, 2xx or 200-399. Empty: 200-399.
	Status string
	// Host is the header of [HTTP]. Empty: the host of the upstream.
	Host string
	// TLS tells apart the ways to speak TLS that [Secure] knows. Empty: there is no TLS.
	TLS string
	// Prefaces tells apart what upstreams are told in a header before anything else, see [Wanted.Preface]. Empty: none is told anything.
	Prefaces string
	// Port is what is checked in place of the port that sessions go to. Zero: that one.
	Port uint16
	// Sources are the addresses to connect from, in turn, separated by spaces. Empty: the system chooses.
	Sources string
}

// Where says which address is checked for one that sessions go to.
func (p *Probe) Where() upstream.Where {
	switch p.Kind {
	case DNS:
		return upstream.Where{Port: p.Port} // over what the sessions use
	case UDP:
		return upstream.Where{Port: p.Port, Network: "udp"}
	}
	return upstream.Where{Port: p.Port, Network: "tcp"}
}

// prober is a Probe that is ready for use.
type prober struct {
	Probe
	sent     []byte
	expect   *regexp.Regexp
	from, to int // status codes
	secure   Secure
	v4, v6   []netip.Addr // sources
}

// Check returns what is wrong with a probe.
func (p Probe) Check() error {
	_, err := p.prepare()
	return err
}

func (p Probe) prepare() (*prober, error) {
	ready := &prober{Probe: p}
	prepare, known := map[string]func() error{
		TCP: func() error { return nil }, Send: ready.prepareSend, HTTP: ready.prepareHTTP, DNS: ready.prepareDNS, UDP: ready.prepareUDP,
	}[p.Kind]
	if !known {
		return nil, fmt.Errorf("%q: expected tcp, send, http, dns or udp", p.Kind)
	}
	if err := prepare(); err != nil {
		return nil, err
	}
	if err := ready.checkTLS(); err != nil {
		return nil, err
	}
	for source := range strings.FieldsSeq(p.Sources) {
		ip, err := netip.ParseAddr(source)
		if err != nil {
			return nil, fmt.Errorf("source: %q: expected an IP address", source)
		}
		if ip = ip.Unmap(); ip.Is4() {
			ready.v4 = append(ready.v4, ip)
		} else {
			ready.v6 = append(ready.v6, ip)
		}
	}
	return ready, nil
}

func (p *prober) prepareSend() (err error) {
	if p.sent, err = ParseText(p.Text); err != nil {
		return err
	}
	if p.Expect == "" {
		return errors.New(`expect: "": expected a regular expression such as ^\+PONG`)
	}
	return p.compile()
}

func (p *prober) compile() (err error) {
	if p.expect, err = regexp.Compile(p.Expect); err != nil {
		reason := strings.TrimPrefix(err.Error(), "error parsing regexp: ")
		return fmt.Errorf("expect: %q: expected a regular expression: %s", p.Expect, reason)
	}
	return nil
}

func (p *prober) prepareUDP() (err error) {
	if p.sent, err = hex.DecodeString(p.Text); err != nil || len(p.sent) > maxDatagram {
		return fmt.Errorf("%q: expected an even number of hexadecimal digits such as 0a1b, at most %d", p.Text, 2*maxDatagram)
	}
	if p.Expect == "" {
		return nil
	}
	return p.compile()
}

// maxDatagram is how large a datagram is sent: one that fits into the packets of any way (RFC 8200, section 5).
const maxDatagram = 1200

func (p *prober) prepareHTTP() (err error) {
	if _, err := url.ParseRequestURI(p.Text); err != nil || !strings.HasPrefix(p.Text, "/") || strings.ContainsAny(p.Text, " \r\n\t") {
		return fmt.Errorf("%q: expected a path such as /healthz", p.Text)
	}
	if strings.ContainsAny(p.Host, " \r\n\t/") {
		return fmt.Errorf("host: %q: expected a name such as app.example.com", p.Host)
	}
	p.from, p.to, err = parseStatus(p.Status)
	return err
}

// parseStatus reads 200, 2xx or 200-399.
func parseStatus(s string) (from, to int, err error) {
	if s == "" {
		return 200, 399, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	if class, is := strings.CutSuffix(s, "xx"); is {
		first, last = class+"00", class+"99"
	}
	from, errFrom := strconv.Atoi(first)
	to, errTo := strconv.Atoi(last)
	if errFrom != nil || errTo != nil || len(first) != 3 || len(last) != 3 || from < 100 || to < from || to > 599 {
		return 0, 0, fmt.Errorf("%q: expected a status code from 100 to 599, as 200, 2xx or 200-399", s)
	}
	return from, to, nil
}

func (p *prober) prepareDNS() error {
	_, valid := dns.IsDomainName(p.Text)
	if !valid || p.Text == "" || strings.ContainsAny(p.Text, " /:") {
		return fmt.Errorf("%q: expected a name such as example.com", p.Text)
	}
	return nil
}

func (p *prober) checkTLS() error {
	if p.TLS != "" && (p.Kind == DNS || p.Kind == UDP) {
		return fmt.Errorf("tls: expected tcp, send or http, but there is %s", p.Kind)
	}
	return nil
}

// Secure returns what knows how TLS is spoken with an upstream that has the host of its address as configured, "" for a unix socket. It is kept as long
// as an address is checked with that host, and asked for each check. It may read files: no other check waits for that.
type Secure func(host string) func() *tls.Config

// ParseText reads a text in which \r, \n, \t, \\ and \x with two hexadecimal digits stand for bytes.
func ParseText(s string) ([]byte, error) {
	text := make([]byte, 0, len(s))
	for rest := s; rest != ""; {
		if rest[0] != '\\' {
			text, rest = append(text, rest[0]), rest[1:]
			continue
		}
		value, size := escaped(rest[1:])
		if size == 0 {
			return nil, fmt.Errorf(`%q: expected \r, \n, \t, \\ or \x and two hexadecimal digits after each \`, s)
		}
		text, rest = append(text, value), rest[1+size:]
	}
	if len(text) > maxText {
		return nil, fmt.Errorf("%q: expected a text of at most %d bytes", s[:64]+"...", maxText)
	}
	return text, nil
}

// maxText is how much a check sends: it has to fit into the socket's buffer.
const maxText = 4096

// escaped returns what an escape stands for, and how long it is without its backslash; 0 where it is none.
func escaped(s string) (value byte, size int) {
	if s == "" {
		return 0, 0
	}
	switch s[0] {
	case 'r':
		return '\r', 1
	case 'n':
		return '\n', 1
	case 't':
		return '\t', 1
	case '\\':
		return '\\', 1
	case 'x':
		if len(s) >= 3 {
			if n, err := strconv.ParseUint(s[1:3], 16, 8); err == nil {
				return byte(n), 3
			}
		}
	}
	return 0, 0
}
