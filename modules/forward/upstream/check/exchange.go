package check

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
)

// exchange is one check of one address: what is sent, and who judges the reply.
type exchange struct {
	addr    net.Addr // *net.TCPAddr, *net.UDPAddr or *net.UnixAddr
	source  netip.Addr
	tls     func() *tls.Config // nil: there is no TLS. It may block.
	protos  []string           // to ask for in TLS
	preface []byte             // what is sent before the handshake
	request []byte
	// judge looks at all that has come of a stream so far, or at a datagram. ended: nothing will follow. It reports whether that is enough,
	// and what is wrong with it: where it is not enough, what would be wrong if nothing followed. Nil: to be connected is enough.
	judge func(reply []byte, ended bool) (done bool, err error)
	// over is called once with the result, unless the exchange was cancelled before.
	over       func(err error)
	cancelled  atomic.Bool           // perhaps before it has begun
	unfinished atomic.Pointer[error] // what is wrong with the reply if no more of it comes in time; nil: nothing has come

	loopState
}

// errTimeout is the result of a check to which nothing was answered in time.
var errTimeout = errors.New("no answer in time")

// maxReply is how much of a stream is looked at.
const maxReply = 16 << 10

// turns counts checks, for sources that take turns.
var turns atomic.Uint32

// exchange returns a check of an address of an upstream, which has the host as configured. speak is from [Secure], nil where there is no TLS.
func (p *prober) exchange(addr net.Addr, host string, speak func() *tls.Config) *exchange {
	x := &exchange{addr: addr, request: p.sent, tls: speak}
	if ap, ok := addr.(interface{ AddrPort() netip.AddrPort }); ok && p.Sources != "" {
		sources := p.v4
		if ap.AddrPort().Addr().Unmap().Is6() {
			sources = p.v6
		}
		if len(sources) > 0 {
			x.source = sources[int(turns.Add(1)%uint32(len(sources)))]
		}
	}
	switch p.Kind {
	case Send:
		x.judge = x.noting(p.judgeText)
	case UDP:
		x.judge = p.judgeDatagram
	case HTTP:
		x.request, x.judge = p.httpRequest(addr, host), x.noting(p.judgeHTTP)
		x.protos = []string{"http/1.1"}
	case DNS:
		p.ask(x)
	}
	return x
}

// after returns the exchange with something to be sent before all else.
func (x *exchange) after(preface []byte) *exchange {
	if x.tls != nil {
		x.preface = preface
	} else if len(preface) > 0 {
		x.request = slices.Concat(preface, x.request)
	}
	return x
}

// noting returns a judge of streams that also notes what is wrong with the part of a reply that has come. A server that goes on waiting after a reply
// that is not the expected one, as Redis does after -NOAUTH, has not been silent.
func (x *exchange) noting(judge func(reply []byte, ended bool) (done bool, err error)) func(reply []byte, ended bool) (done bool, err error) {
	return func(reply []byte, ended bool) (done bool, err error) {
		if done, err = judge(reply, ended); !done && len(reply) > 0 {
			wrong := err
			x.unfinished.Store(&wrong)
		}
		return done, err
	}
}

// timedOut returns the result of a check that did not end in time.
func (x *exchange) timedOut() error {
	if wrong := x.unfinished.Load(); wrong != nil {
		return *wrong
	}
	return errTimeout
}

// silent reports whether no reply at all passes.
func (p *prober) silent() bool { return p.Kind == UDP && p.expect == nil }

func (p *prober) judgeText(reply []byte, ended bool) (done bool, err error) {
	switch {
	case len(reply) == 0:
		return ended, fmt.Errorf("it has sent nothing, expected %q", p.Expect)
	case p.expect.Match(reply):
		return true, nil
	}
	return ended || len(reply) >= maxReply, fmt.Errorf("it has sent %s, expected %q", shortened(reply), p.Expect)
}

func (p *prober) judgeDatagram(reply []byte, _ bool) (done bool, err error) {
	if p.expect == nil || p.expect.MatchString(latin1(reply)) {
		return true, nil
	}
	return true, fmt.Errorf("it has sent %s, expected %q", shortened(reply), p.Expect)
}

// latin1 returns a text that has a character for each byte, so that \xff in a regular expression stands for that byte.
func latin1(b []byte) string {
	var text strings.Builder
	for _, c := range b {
		text.WriteRune(rune(c))
	}
	return text.String()
}

// shortened is what an error quotes of a reply.
func shortened(reply []byte) string {
	if len(reply) > 64 {
		return strconv.Quote(string(reply[:64])) + "..."
	}
	return strconv.Quote(string(reply))
}

func (p *prober) httpRequest(addr net.Addr, host string) []byte {
	if p.Host != "" {
		host = p.Host
	} else if ap, ok := addr.(interface{ AddrPort() netip.AddrPort }); ok && host != "" {
		host = net.JoinHostPort(host, strconv.Itoa(int(ap.AddrPort().Port())))
	}
	if host == "" {
		host = "localhost"
	}
	return []byte("GET " + p.Text + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: Portgate\r\nAccept: */*\r\nConnection: close\r\n\r\n")
}

func (p *prober) judgeHTTP(reply []byte, ended bool) (done bool, err error) {
	last, interim := p.lastResponse(reply)
	line, _, whole := bytes.Cut(last, []byte("\n"))
	enough := whole || ended || len(reply) >= maxReply
	if !whole && interim {
		return enough, fmt.Errorf("it has sent %s and no final response, expected %s", shortened(bytes.TrimSpace(firstLine(reply))), p.statuses())
	}
	if len(last) == 0 {
		return enough, errors.New("it has sent nothing, expected an HTTP response")
	}
	fields := bytes.Fields(line)
	if !whole || len(fields) < 2 || !bytes.HasPrefix(fields[0], []byte("HTTP/")) {
		return enough, fmt.Errorf("it has sent %s, expected an HTTP response", shortened(line))
	}
	status, err := strconv.Atoi(string(fields[1]))
	if err != nil || status < p.from || status > p.to {
		return true, fmt.Errorf("status %s, expected %s", shortened(fields[1]), p.statuses())
	}
	return true, nil
}

func firstLine(reply []byte) []byte {
	line, _, _ := bytes.Cut(reply, []byte("\n"))
	return line
}

// statuses returns those that pass, as configured.
func (p *prober) statuses() string {
	if p.Status == "" {
		return "200-399"
	}
	return p.Status
}

// lastResponse returns a reply without the interim responses that stand in front of the one that counts, such as 100 and 103: a client has to
// expect some, even where it has not asked for any (RFC 9110, section 15.2). One that passes itself is not left out. What has not come as a whole
// is empty.
func (p *prober) lastResponse(reply []byte) (last []byte, interim bool) {
	for {
		fields := bytes.Fields(firstLine(reply))
		if len(fields) < 2 || !bytes.HasPrefix(fields[0], []byte("HTTP/")) || len(fields[1]) != 3 || fields[1][0] != '1' {
			return reply, interim
		}
		status, err := strconv.Atoi(string(fields[1]))
		if err != nil || status == http.StatusSwitchingProtocols || p.from <= status && status <= p.to {
			return reply, interim
		}
		interim = true
		if reply = behindHeader(reply); reply == nil {
			return nil, interim
		}
	}
}

// behindHeader returns what follows a response that has a header alone, nil where that has not come as a whole.
func behindHeader(response []byte) []byte {
	for rest := response; ; {
		line, behind, whole := bytes.Cut(rest, []byte("\n"))
		switch {
		case !whole:
			return nil
		case len(bytes.TrimSuffix(line, []byte("\r"))) == 0:
			return behind
		}
		rest = behind
	}
}

// ask has the exchange ask for the addresses of a name.
func (p *prober) ask(x *exchange) {
	var question dns.Msg
	question.SetQuestion(dns.Fqdn(p.Text), dns.TypeA)
	packed, err := question.Pack()
	if err != nil { // such a name is refused before
		x.judge = func([]byte, bool) (bool, error) { return true, err }
		return
	}
	stream := x.addr.Network() != "udp"
	if stream {
		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	x.request = packed
	x.judge = func(reply []byte, ended bool) (bool, error) { return judgeDNS(&question, reply, stream, ended) }
}

func judgeDNS(question *dns.Msg, reply []byte, stream, ended bool) (done bool, err error) {
	if stream {
		if len(reply) < 2 || len(reply)-2 < int(binary.BigEndian.Uint16(reply)) {
			if ended || len(reply) >= maxReply {
				return true, errors.New("it has closed the connection, expected an answer")
			}
			return false, nil
		}
		reply = reply[2 : 2+int(binary.BigEndian.Uint16(reply))]
	}
	var answer dns.Msg
	err = answer.Unpack(reply)
	if len(reply) < 12 || answer.Id != question.Id || !answer.Response || len(answer.Question) == 1 && !sameQuestion(answer.Question[0], question.Question[0]) {
		if stream {
			return true, errors.New("it has sent something else than an answer")
		}
		return false, nil // somebody else's: the answer may still come
	}
	switch {
	case answer.Rcode != dns.RcodeSuccess:
		return true, fmt.Errorf("it has answered %s, expected NOERROR", rcode(answer.Rcode))
	case err != nil && !answer.Truncated:
		return true, fmt.Errorf("its answer can't be read: %w", err)
	}
	return true, nil
}

func sameQuestion(a, b dns.Question) bool {
	return strings.EqualFold(a.Name, b.Name) && a.Qtype == b.Qtype && a.Qclass == b.Qclass
}

func rcode(code int) string {
	if name, known := dns.RcodeToString[code]; known {
		return name
	}
	return strconv.Itoa(code)
}
