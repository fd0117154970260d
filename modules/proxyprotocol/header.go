package proxyprotocol

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"sync"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// Sizes from the specification of the PROXY protocol, sections 2.1 and 2.2.
const (
	minHeader   = 15  // "PROXY UNKNOWN\r\n"
	maxV1Header = 107 // with CRLF
	v2Prefix    = 16  // signature, version and command, family, length
)

// maxHeader bounds a header of version 2, so that a peer can't make us keep 64 KiB for it. A client certificate, the
// largest thing that is sent in practice, has 1 to 2 KiB.
var maxHeader = v2Prefix + int(proxyproto.MaxV2HeaderSize)

var (
	errNoHeader = errors.New("expected a PROXY protocol header")
	errNoCRLF   = errors.New("expected CRLF at the end of a PROXY protocol header, within 107 bytes")
)

// header is what a PROXY protocol header says.
type header struct {
	// client and local are the addresses of the connection that the peer passes on. They are the zero value where the
	// peer speaks for itself (LOCAL, as in a health check), or does not know or has no IP addresses (UNKNOWN, unix).
	client, local netip.AddrPort

	tlvs []proxyproto.TLV
}

// frame finds the header that b begins with. It returns the size of the header where it is complete, and else how many
// more bytes it has at least: so many can be read without touching what is behind the header.
func frame(b []byte) (size, more int, err error) {
	switch {
	case matches(b, proxyproto.SIGV2):
		return frameV2(b)
	case matches(b, []byte("PROXY ")):
		return frameV1(b)
	}
	return 0, 0, errNoHeader
}

// matches reports whether b and the signature are the same as far as both go.
func matches(b, signature []byte) bool {
	n := min(len(b), len(signature))
	return bytes.Equal(b[:n], signature[:n])
}

func frameV1(b []byte) (size, more int, err error) {
	line := b[:min(len(b), maxV1Header)]
	if i := bytes.IndexByte(line, '\n'); i > 0 && line[i-1] == '\r' {
		return i + 1, 0, nil
	} else if i >= 0 || len(line) == maxV1Header {
		return 0, 0, errNoCRLF
	}
	switch {
	case len(b) < minHeader:
		more = minHeader - len(b)
	case b[len(b)-1] == '\r':
		more = 1
	default:
		more = 2
	}
	return 0, min(more, maxV1Header-len(b)), nil
}

func frameV2(b []byte) (size, more int, err error) {
	if len(b) < v2Prefix {
		// The smallest header of version 1 is one byte shorter, and nothing at all may be either.
		return 0, max(minHeader, min(len(b)+1, v2Prefix)) - len(b), nil
	}
	size = v2Prefix + int(binary.BigEndian.Uint16(b[v2Prefix-2:]))
	switch {
	case size > maxHeader:
		return 0, 0, fmt.Errorf("expected a PROXY protocol header of at most %d bytes, and not %d", maxHeader, size)
	case len(b) < size:
		return 0, size - len(b), nil
	}
	return size, 0, nil
}

// readers are used for one header after the other.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 256) }}

// parse reads a complete header, as [frame] finds it.
func parse(b []byte) (header, error) {
	reader := readers.Get().(*bufio.Reader)
	defer readers.Put(reader)
	source := bytes.NewReader(b)
	reader.Reset(source)
	parsed, err := proxyproto.Read(reader)
	if err != nil {
		return header{}, err
	}
	if reader.Buffered()+source.Len() > 0 {
		return header{}, fmt.Errorf("expected a PROXY protocol header of %d bytes", len(b))
	}
	tlvs, err := parsed.TLVs()
	h := header{tlvs: tlvs}
	if parsed.Command == proxyproto.LOCAL {
		return h, nil // what is behind need not have any form
	}
	if err != nil {
		return header{}, fmt.Errorf("fields behind the addresses of a PROXY protocol header: %w", err)
	}
	if err := checkSum(b); err != nil {
		return header{}, err
	}
	if parsed.TransportProtocol.IsDatagram() {
		return header{}, errors.New("expected a PROXY protocol header of a stream, and not of datagrams")
	}
	if client, local, ok := parsed.TCPAddrs(); ok {
		h.client, h.local = unmapped(client.AddrPort()), unmapped(local.AddrPort())
	}
	return h, nil
}

func unmapped(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noSum      [crc32.Size]byte // on the heap once, and not for each header
)

// addressSizes are those of the addresses in a header of version 2, by the upper half of its 14th byte.
var addressSizes = map[byte]int{1: 12, 2: 36, 3: 216}

// checkSum verifies the checksum of a header that has one: of all its bytes, with those of the checksum as zeros
// (section 2.2.4). The fields of the header are well-formed.
func checkSum(b []byte) error {
	if b[0] == 'P' {
		return nil // version 1 has none
	}
	for at := v2Prefix + addressSizes[b[v2Prefix-3]>>4]; at < len(b); {
		begin, size := at+3, int(binary.BigEndian.Uint16(b[at+1:]))
		if proxyproto.PP2Type(b[at]) != proxyproto.PP2_TYPE_CRC32C {
			at = begin + size
			continue
		}
		if size != crc32.Size {
			return fmt.Errorf("checksum of a PROXY protocol header: expected %d bytes, and not %d", crc32.Size, size)
		}
		sum := crc32.Update(0, castagnoli, b[:begin])
		sum = crc32.Update(sum, castagnoli, noSum[:])
		sum = crc32.Update(sum, castagnoli, b[begin+size:])
		if sum != binary.BigEndian.Uint32(b[begin:]) {
			return errors.New("checksum of a PROXY protocol header: expected another one")
		}
		return nil
	}
	return nil
}

// fields returns what the header says beside the addresses, by the names of placeholders.
func (h *header) fields() map[string]string {
	if len(h.tlvs) == 0 {
		return nil
	}
	all := make(map[string]string)
	for _, tlv := range h.tlvs {
		switch tlv.Type {
		case proxyproto.PP2_TYPE_AUTHORITY:
			all["authority"] = string(tlv.Value)
		case proxyproto.PP2_TYPE_UNIQUE_ID:
			all["unique_id"] = opaque(tlv.Value)
		}
	}
	if ssl, ok := tlvparse.FindSSL(h.tlvs); ok {
		if name, ok := ssl.ClientCN(); ok {
			all["ssl_cn"] = name
		}
	}
	if id := tlvparse.FindAWSVPCEndpointID(h.tlvs); id != "" {
		all["aws_vpce_id"] = id
	}
	return all
}

// opaque returns bytes as they are where all are printable ASCII, and else in hexadecimal digits.
func opaque(b []byte) string {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("%x", b)
		}
	}
	return string(b)
}
