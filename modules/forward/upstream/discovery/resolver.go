package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Resolver asks name servers.
type Resolver struct {
	// Servers are addresses with ports. None: those of /etc/resolv.conf, with its search list; it is read again for each question.
	Servers []string

	conf string // in place of /etc/resolv.conf
}

const (
	// serverTimeout is how long a server of [Resolver.Servers] has for an answer, and serverAttempts how often each is asked.
	serverTimeout  = 2 * time.Second
	serverAttempts = 2
	// udpSize is what fits into a datagram that no network on the way has to cut (DNS flag day 2020).
	udpSize = 1232
)

// ParseServer reads the address of a name server, with the port 53 if it has none.
func ParseServer(s string) (string, error) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(ip, 53).String(), nil
	}
	addr, err := netip.ParseAddrPort(s)
	if err != nil || addr.Port() == 0 {
		return "", fmt.Errorf("%q: expected the address of a name server, such as 10.0.0.53 or 10.0.0.53:5353", s)
	}
	return addr.String(), nil
}

// notFoundError is the error of a name that does not exist, or has no record of the type, as name servers say.
type notFoundError struct{ name, what string }

func (e *notFoundError) Error() string {
	return fmt.Sprintf("%s: the name server says that there is %s", e.name, e.what)
}

func isNotFound(err error) bool {
	var missing *notFoundError
	return errors.As(err, &missing)
}

// plan is which servers are asked, and for what.
type plan struct {
	servers  []string
	names    []string
	timeout  time.Duration
	attempts int
}

func (r *Resolver) plan(name string) (plan, error) {
	if len(r.Servers) > 0 {
		return plan{r.Servers, []string{dns.Fqdn(name)}, serverTimeout, serverAttempts}, nil
	}
	path := r.conf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	conf, err := dns.ClientConfigFromFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return plan{}, fmt.Errorf("resolvers: this system has no %s: expected the addresses of name servers", path)
	}
	if err != nil {
		return plan{}, err
	}
	p := plan{names: conf.NameList(name), timeout: time.Duration(min(conf.Timeout, 30)) * time.Second, attempts: min(conf.Attempts, 5)}
	for _, server := range conf.Servers {
		p.servers = append(p.servers, net.JoinHostPort(server, conf.Port))
	}
	if len(p.servers) == 0 { // resolv.conf(5)
		p.servers = []string{"127.0.0.1:53"}
	}
	return p, nil
}

// ask returns the first answer to a question that has records of its type.
func (r *Resolver) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	p, err := r.plan(name)
	if err != nil {
		return nil, err
	}
	missing := &notFoundError{name, "no such name"}
	for _, name := range p.names {
		msg, err := p.askAll(ctx, name, kind)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", dns.TypeToString[kind], strings.TrimSuffix(name, "."), err)
		}
		msg.Answer = answering(msg.Answer, name)
		for _, record := range msg.Answer {
			if record.Header().Rrtype == kind {
				return msg, nil
			}
		}
		if msg.Rcode == dns.RcodeSuccess {
			missing.what = "no " + dns.TypeToString[kind] + " record"
		}
	}
	return nil, missing
}

// askAll asks one server after the other, until one knows whether there are such records.
func (p *plan) askAll(ctx context.Context, name string, kind uint16) (msg *dns.Msg, err error) {
	for range p.attempts {
		for _, server := range p.servers {
			if msg, err = p.askOne(ctx, server, name, kind); err == nil {
				return msg, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
	}
	return nil, err
}

func (p *plan) askOne(ctx context.Context, server, name string, kind uint16) (*dns.Msg, error) {
	query := new(dns.Msg)
	query.SetQuestion(name, kind)
	query.SetEdns0(udpSize, false)
	msg, err := p.exchange(ctx, "udp", server, query)
	if err == nil && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) { // an old server without EDNS (RFC 6891)
		query.Extra = nil
		msg, err = p.exchange(ctx, "udp", server, query)
	}
	if err == nil && msg.Truncated {
		msg, err = p.exchange(ctx, "tcp", server, query)
	}
	if err != nil {
		return nil, fmt.Errorf("name server %s: %w", server, err)
	}
	if msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("name server %s answers %s", server, dns.RcodeToString[msg.Rcode])
	}
	return msg, nil
}

// exchange ends when ctx does.
func (p *plan) exchange(ctx context.Context, network, server string, query *dns.Msg) (*dns.Msg, error) {
	client := &dns.Client{Net: network, Timeout: p.timeout, UDPSize: udpSize}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	msg, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	if err != nil {
		return nil, err
	}
	if !answers(msg, query.Question[0]) {
		return nil, errors.New("the answer is to another question")
	}
	return msg, nil
}

// answers reports whether a message answers a question. One that says that it did not understand may be without the question.
func answers(msg *dns.Msg, question dns.Question) bool {
	if msg.Rcode == dns.RcodeFormatError && len(msg.Question) == 0 {
		return msg.Response
	}
	return msg.Response && len(msg.Question) == 1 && msg.Question[0].Qtype == question.Qtype && strings.EqualFold(msg.Question[0].Name, question.Name)
}

// maxAliases bounds the passes over an answer, which may have thousands of CNAME records in the worst order.
const maxAliases = 32

// answering returns the records of a name: its own, and those of the names that its CNAME records lead to. A server may put others beside them,
// which nobody has asked for.
func answering(records []dns.RR, name string) (all []dns.RR) {
	names := map[string]struct{}{strings.ToLower(name): {}}
	known := 0
	for pass := 0; known < len(names) && pass < maxAliases; pass++ { // the records of a chain may be in any order
		known = len(names)
		for _, record := range records {
			alias, ok := record.(*dns.CNAME)
			if !ok || alias.Hdr.Class != dns.ClassINET {
				continue
			}
			if _, asked := names[strings.ToLower(alias.Hdr.Name)]; asked {
				names[strings.ToLower(alias.Target)] = struct{}{}
			}
		}
	}
	for _, record := range records {
		if _, asked := names[strings.ToLower(record.Header().Name)]; asked && record.Header().Class == dns.ClassINET {
			all = append(all, record)
		}
	}
	return all
}

// ttlOf returns how long all of an answer is valid.
func ttlOf(records []dns.RR) time.Duration {
	ttl := time.Duration(-1)
	for _, record := range records {
		if own := time.Duration(record.Header().Ttl) * time.Second; ttl < 0 || own < ttl {
			ttl = own
		}
	}
	return max(ttl, MinRefresh)
}

// addresses returns the addresses that an answer has.
func addresses(records []dns.RR) (all []netip.Addr) {
	for _, record := range records {
		var ip net.IP
		switch record := record.(type) {
		case *dns.A:
			ip = record.A
		case *dns.AAAA:
			ip = record.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, addr.Unmap())
		}
	}
	return all
}
