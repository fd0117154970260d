package proxyprotocol

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// v2 makes a header of version 2 by hand.
func v2(versionCommand, family byte, addresses string, tlvs ...[]byte) string {
	body := addresses + string(bytes.Join(tlvs, nil))
	b := append([]byte(nil), proxyproto.SIGV2...)
	b = append(b, versionCommand, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return string(b) + body
}

func tlv(kind proxyproto.PP2Type, value string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{byte(kind)}, uint16(len(value)))
	return append(b, value...)
}

// summed gives a header with a checksum of zeros, at that offset, the right one.
func summed(head string, offset int) string {
	b := []byte(head)
	binary.BigEndian.PutUint32(b[offset:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

const (
	tcp4 = "\xc0\x00\x02\x07\xc6\x33\x64\x01\x1e\x61\x22\xb8" // 192.0.2.7:7777 -> 198.51.100.1:8888
	unix = "/a"
)

var (
	tcp6   = string(netip.MustParseAddr("2001:db8::7").AsSlice()) + string(netip.MustParseAddr("2001:db8::1").AsSlice()) + "\x1e\x61\x22\xb8"
	mapped = string(netip.MustParseAddr("::ffff:192.0.2.7").AsSlice()) + string(netip.MustParseAddr("::ffff:198.51.100.1").AsSlice()) + "\x1e\x61\x22\xb8"
	paths  = unix + strings.Repeat("\x00", 106) + unix + strings.Repeat("\x00", 106)
	long   = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
)

var valid = map[string]struct{ head, client string }{
	"v1 TCP4":                    {"PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n", "192.0.2.7:7777"},
	"v1 TCP6":                    {"PROXY TCP6 2001:db8::7 2001:db8::1 7777 8888\r\n", "[2001:db8::7]:7777"},
	"v1 TCP6, mapped":            {"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 7777 8888\r\n", "192.0.2.7:7777"},
	"v1, ports 0":                {"PROXY TCP4 192.0.2.7 198.51.100.1 0 0\r\n", "192.0.2.7:0"},
	"v1, the longest":            {long, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	"v1 UNKNOWN":                 {"PROXY UNKNOWN\r\n", ""},
	"v1 UNKNOWN, more":           {"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", ""},
	"v2 TCP4":                    {v2(0x21, 0x11, tcp4), "192.0.2.7:7777"},
	"v2 TCP6":                    {v2(0x21, 0x21, tcp6), "[2001:db8::7]:7777"},
	"v2 TCP6, mapped":            {v2(0x21, 0x21, mapped), "192.0.2.7:7777"},
	"v2 unix":                    {v2(0x21, 0x31, paths), ""},
	"v2 LOCAL":                   {v2(0x20, 0x00, ""), ""},
	"v2 LOCAL, addresses":        {v2(0x20, 0x11, tcp4), ""},
	"v2 LOCAL, no block":         {v2(0x20, 0x11, ""), ""},
	"v2 LOCAL, something":        {v2(0x20, 0x00, "abc"), ""},
	"v2 LOCAL, more":             {v2(0x20, 0x11, tcp4, []byte{2, 0, 9, 'a'}), ""},
	"v2 LOCAL, a wrong checksum": {v2(0x20, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")), ""},
	"v2 with fields":             {v2(0x21, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_AUTHORITY, "example.com"), tlv(proxyproto.PP2_TYPE_NOOP, "abc")), "192.0.2.7:7777"},
	"v2 with a checksum": {summed(v2(0x21, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_NOOP, "a"), tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00"),
		tlv(proxyproto.PP2_TYPE_NOOP, "bc")), 16+12+4+3), "192.0.2.7:7777"},
}

var invalid = map[string]string{
	"something else":           "GET / HTTP/1.1\r\n",
	"a zero byte":              "\x00",
	"v1 in small letters":      "proxy TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n",
	"v1 without a space":       "PROXYTCP4",
	"v1 without CR":            "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\n",
	"v1, 108 bytes":            strings.TrimSuffix(long, "\r\n") + strings.Repeat("1", 4) + "\r\n",
	"v1 without an end":        "PROXY TCP4 " + strings.Repeat("1", 200),
	"v1 with a name":           "PROXY TCP4 localhost 198.51.100.1 7777 8888\r\n",
	"v1 with a zone":           "PROXY TCP6 fe80::1%eth0 2001:db8::1 7777 8888\r\n",
	"v1 of the other family":   "PROXY TCP4 2001:db8::7 2001:db8::1 7777 8888\r\n",
	"v1 with a large port":     "PROXY TCP4 192.0.2.7 198.51.100.1 65536 8888\r\n",
	"v1 with a sign":           "PROXY TCP4 192.0.2.7 198.51.100.1 +1 8888\r\n",
	"v1 UDP":                   "PROXY UDP4 192.0.2.7 198.51.100.1 7777 8888\r\n",
	"v1 without addresses":     "PROXY TCP4 192.0.2.7\r\n",
	"v2, another version":      v2(0x31, 0x11, tcp4),
	"v2, another command":      v2(0x22, 0x11, tcp4),
	"v2, another family":       v2(0x21, 0x41, tcp4),
	"v2, another transport":    v2(0x21, 0x13, tcp4),
	"v2 UDP4":                  v2(0x21, 0x12, tcp4),
	"v2, addresses cut":        v2(0x21, 0x11, tcp4[:11]),
	"v2 without addresses":     v2(0x21, 0x00, ""),
	"v2, a field cut":          v2(0x21, 0x11, tcp4, []byte{2}),
	"v2, a field that overran": v2(0x21, 0x11, tcp4, []byte{2, 0, 9, 'a'}),
	"v2, a wrong checksum":     v2(0x21, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")),
	"v2, a short checksum":     v2(0x21, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00")),
	"v2, more than may be":     v2(0x21, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_NOOP, strings.Repeat("x", 5000))),
}

// pieces is a connection that gives at most so many bytes a read, and notes how many were read.
type pieces struct {
	net.Conn
	rest string
	size int
	read int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.rest == "" {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.rest)
	p.rest = p.rest[n:]
	p.read += n
	return n, nil
}

// A header is read however it arrives, and what is behind it is left alone.
func TestRead(t *testing.T) {
	t.Parallel()
	for name, c := range valid {
		for _, size := range []int{1, 2, 7, 1 << 20} {
			for _, behind := range []string{"", "\r\n", "PROXY TCP4 203.0.113.1 203.0.113.2 1 2\r\n"} {
				conn := &pieces{rest: c.head + behind, size: size}
				h, err := read(conn)
				client := ""
				if h.client.IsValid() {
					client = h.client.String()
				}
				if err != nil || client != c.client || conn.rest != behind {
					t.Errorf("%s, %d bytes a read: client %q, %v, and %q left; want %q and %q", name, size, client, err, conn.rest, c.client, behind)
				}
			}
		}
		cut := &pieces{rest: c.head[:len(c.head)-1], size: 1 << 20}
		if h, err := read(cut); err == nil {
			t.Errorf("%s, cut: %+v", name, h)
		}
	}
	for name, head := range invalid {
		for _, size := range []int{1, 1 << 20} {
			conn := &pieces{rest: head + strings.Repeat("x", 200), size: size}
			if h, err := read(conn); err == nil {
				t.Errorf("%s, %d bytes a read: %+v, want an error", name, size, h)
			} else if conn.read > maxHeader {
				t.Errorf("%s: read %d bytes", name, conn.read)
			}
		}
	}
}

// looked is a connection of which everything has arrived.
type looked struct{ rest string }

func (l *looked) Peek(b []byte) (int, error) { return copy(b, l.rest), nil }

func (l *looked) Skip(b []byte) error {
	l.rest = l.rest[len(b):]
	return nil
}

// What has arrived is read at once where it is complete, and else left alone.
func TestPeek(t *testing.T) {
	t.Parallel()
	for name, c := range valid {
		conn := &looked{c.head + "behind"}
		if h, complete, err := peek(conn); !complete || err != nil || conn.rest != "behind" || (c.client != "") != h.client.IsValid() {
			t.Errorf("%s: %+v, %t, %v, and %q left", name, h, complete, err, conn.rest)
		}
		for n := range len(c.head) {
			conn := &looked{c.head[:n]}
			if h, complete, err := peek(conn); complete || err != nil || len(conn.rest) != n {
				t.Errorf("%s, %d bytes: %+v, %t, %v", name, n, h, complete, err)
			}
		}
	}
	for name, head := range invalid {
		if h, complete, err := peek(&looked{head + strings.Repeat("x", 5000)}); !complete || err == nil {
			t.Errorf("%s: %+v, want an error at once", name, h)
		}
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	ssl := tlv(proxyproto.PP2_TYPE_SSL, "\x07\x00\x00\x00\x00"+string(tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.3"))+string(tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "a client")))
	h, err := parse([]byte(v2(0x21, 0x11, tcp4, tlv(proxyproto.PP2_TYPE_AUTHORITY, "example.com"), ssl,
		tlv(proxyproto.PP2_TYPE_UNIQUE_ID, "\x00\xff"), tlv(0xEA, "\x01vpce-08d2bf15fac5001c9"))))
	if err != nil {
		t.Fatal(err)
	}
	got := h.fields()
	for field, want := range map[string]string{
		"authority": "example.com", "ssl_cn": "a client", "unique_id": "00ff", "aws_vpce_id": "vpce-08d2bf15fac5001c9",
	} {
		if got[field] != want {
			t.Errorf("%s is %q, want %q", field, got[field], want)
		}
	}
	if h, _ := parse([]byte(v2(0x21, 0x11, tcp4))); h.fields() != nil {
		t.Errorf("fields of a header without any: %v", h.fields())
	}
}

// FuzzRead has two things that are true of any bytes: reading them in pieces is reading them at once, and no byte behind
// a header is touched. What go-proxyproto takes for a header of a stream of TCP has the addresses that it says.
func FuzzRead(f *testing.F) {
	for _, c := range valid {
		f.Add([]byte(c.head+"behind"), uint8(3))
	}
	for _, head := range invalid {
		f.Add([]byte(head), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		whole := &looked{string(b)}
		h, complete, err := peek(whole)
		conn := &pieces{rest: string(b), size: int(size) + 1}
		other, failed := read(conn)
		switch {
		case !complete:
			if failed == nil {
				t.Fatalf("not complete, but read: %+v", other)
			}
		case (err == nil) != (failed == nil):
			t.Fatalf("at once %v, in pieces %v", err, failed)
		case err == nil:
			if h.client != other.client || h.local != other.local || whole.rest != conn.rest {
				t.Fatalf("at once %+v and %d bytes left, in pieces %+v and %d", h, len(whole.rest), other, len(conn.rest))
			}
			h.fields()
		}
	})
}
