package ipset

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Range is all addresses from First to Last, both of one family.
type Range struct{ First, Last netip.Addr }

// Canonical returns the address as it is compared: without a zone, and as IPv4 if it is an IPv4 address
// in IPv6 clothes (::ffff:a.b.c.d). The system names one client in different ways, depending on which kind of
// socket it came in on.
func Canonical(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// Of returns the addresses of a prefix that [ParsePrefix] has returned.
func Of(prefix netip.Prefix) Range {
	return Range{prefix.Addr(), last(prefix)}
}

// Parse reads an address, a prefix such as 10.0.0.0/8, or a range such as 10.0.0.1-10.0.0.9.
func Parse(s string) (Range, error) {
	if strings.Contains(s, "-") {
		return parseRange(s)
	}
	prefix, err := ParsePrefix(s)
	if errors.Is(err, errNoPrefix) {
		return Range{}, errExpected(s)
	}
	if err != nil {
		return Range{}, err
	}
	return Of(prefix), nil
}

func parseRange(s string) (Range, error) {
	from, to, _ := strings.Cut(s, "-")
	first, err := netip.ParseAddr(strings.TrimSpace(from))
	if err != nil {
		return Range{}, errExpected(s)
	}
	last, err := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil {
		return Range{}, errExpected(s)
	}
	r := Range{Canonical(first), Canonical(last)}
	if r.First.BitLen() != r.Last.BitLen() {
		return Range{}, fmt.Errorf("%s: expected two addresses of one family", quote(s))
	}
	if r.Last.Less(r.First) {
		return Range{}, fmt.Errorf("%s: expected the lower address first", quote(s))
	}
	return r, nil
}

// ParsePrefix reads a prefix, or an address, which stands for the prefix that only has itself. The result is
// canonical, so that ::ffff:10.0.0.0/104 becomes 10.0.0.0/8.
func ParsePrefix(s string) (netip.Prefix, error) {
	address, length, isPrefix := strings.Cut(s, "/")
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s: %w", quote(s), errNoPrefix)
	}
	addr = addr.WithZone("")
	bits := addr.BitLen()
	if isPrefix {
		if bits, err = parseLength(length, addr.BitLen()); err != nil {
			return netip.Prefix{}, fmt.Errorf("%s: %w", quote(s), err)
		}
	}
	// Whatever is shorter than /96 around a mapped address is more than IPv4; its host bits give it away.
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	prefix := netip.PrefixFrom(addr, bits)
	if prefix.Masked() != prefix {
		return netip.Prefix{}, &hostBitsError{s, prefix}
	}
	return prefix, nil
}

// hostBitsError is the error for a prefix that has bits set behind its length, such as 192.0.2.9/30.
type hostBitsError struct {
	text   string
	prefix netip.Prefix
}

func (e *hostBitsError) Error() string {
	return fmt.Sprintf("%s: expected no bits set behind the prefix: %s, or %s for the one address",
		quote(e.text), e.prefix.Masked(), e.prefix.Addr())
}

func parseLength(s string, most int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || int(n) > most || s[0] == '+' || len(s) > 1 && s[0] == '0' {
		return 0, fmt.Errorf("expected a prefix length from 0 to %d", most)
	}
	return int(n), nil
}

// last returns the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	addr := p.Addr()
	bytes, bits := addr.As16(), p.Bits()+128-addr.BitLen()
	for i := bits / 8; i < len(bytes); i++ {
		bytes[i] |= byte(0xff >> max(bits-8*i, 0))
	}
	if addr.Is4() {
		return netip.AddrFrom4([4]byte(bytes[12:]))
	}
	return netip.AddrFrom16(bytes)
}

// maxQuoted bounds what an error repeats of a line that somebody else has written.
const maxQuoted = 64

func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.Quote(s[:maxQuoted]) + "..."
	}
	return strconv.Quote(s)
}

var (
	errForm     = errors.New("expected an address, a prefix such as 10.0.0.0/8, or a range such as 10.0.0.1-10.0.0.9")
	errNoPrefix = errors.New("expected an address, or a prefix such as 10.0.0.0/8")
)

func errExpected(s string) error { return fmt.Errorf("%s: %w", quote(s), errForm) }
