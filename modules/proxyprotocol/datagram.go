package proxyprotocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/pires/go-proxyproto"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
)

// Fourteenth byte of a header: address family and transport.
const (
	unspecified = 0x00
	udp4        = 0x12
	udp6        = 0x22
	unixgram    = 0x32
)

var (
	errVersion1  = errors.New("expected a PROXY protocol header of version 2, and not of version 1: that is for TCP alone")
	errVersion   = errors.New("expected a PROXY protocol header of version 2, with the command LOCAL or PROXY")
	errCut       = errors.New("expected the whole PROXY protocol header in the datagram")
	errTooLong   = errors.New("expected a PROXY protocol header of at most 4112 bytes")
	errFamily    = errors.New("expected a PROXY protocol header of datagrams")
	errAddresses = errors.New("expected both addresses in a PROXY protocol header")
	errFields    = errors.New("expected fields behind the addresses of a PROXY protocol header that end where it ends")
)

// parseDatagram reads the header that a datagram begins with. It is for each datagram of a load balancer, so it allocates nothing, which
// go-proxyproto does; a fuzz test compares both. What is said of LOCAL and UNSPEC is from section 2.2 of the specification: the address
// block is not looked at.
func parseDatagram(b []byte) (h fastpath.Header, err error) {
	switch {
	case bytes.HasPrefix(b, []byte("PROXY ")):
		return h, errVersion1
	case !bytes.HasPrefix(b, proxyproto.SIGV2):
		return h, errNoHeader
	case len(b) < v2Prefix:
		return h, errCut
	}
	command, family := b[v2Prefix-4], b[v2Prefix-3]
	size := v2Prefix + int(binary.BigEndian.Uint16(b[v2Prefix-2:]))
	switch {
	case command != byte(proxyproto.LOCAL) && command != byte(proxyproto.PROXY):
		return h, errVersion
	case size > maxHeader:
		return h, errTooLong
	case size > len(b):
		return h, errCut
	case command == byte(proxyproto.LOCAL), family == unspecified:
		return fastpath.Header{Size: size}, nil
	case family != udp4 && family != udp6 && family != unixgram:
		return h, errFamily
	}
	return parseAddresses(b[:size], family)
}

// parseAddresses reads what is behind the first bytes of a header.
func parseAddresses(b []byte, family byte) (h fastpath.Header, err error) {
	behind := v2Prefix + addressSizes[family>>4]
	if len(b) < behind {
		return h, errAddresses
	}
	h.Size = len(b)
	if len(b) > behind {
		h.Fields = b[behind:]
		if !wellFormed(h.Fields) {
			return fastpath.Header{}, errFields
		}
		if err := checkSum(b); err != nil {
			return fastpath.Header{}, err
		}
	}
	if family == unixgram {
		return h, nil
	}
	ips := b[v2Prefix : behind-4]
	client, _ := netip.AddrFromSlice(ips[:len(ips)/2])
	local, _ := netip.AddrFromSlice(ips[len(ips)/2:])
	h.Client = netip.AddrPortFrom(client.Unmap(), binary.BigEndian.Uint16(b[behind-4:]))
	h.Local = netip.AddrPortFrom(local.Unmap(), binary.BigEndian.Uint16(b[behind-2:]))
	return h, nil
}

// wellFormed reports whether the fields of a header end where it ends.
func wellFormed(fields []byte) bool {
	for len(fields) >= 3 {
		size := 3 + int(binary.BigEndian.Uint16(fields[1:]))
		if size > len(fields) {
			return false
		}
		fields = fields[size:]
	}
	return len(fields) == 0
}
