package proxyprotocol

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

var validDatagrams = map[string]struct{ head, client, local string }{
	"UDP4":                    {v2(0x21, 0x12, tcp4), "192.0.2.7:7777", "198.51.100.1:8888"},
	"UDP4, ports 0":           {v2(0x21, 0x12, tcp4[:8]+"\x00\x00\x00\x00"), "192.0.2.7:0", "198.51.100.1:0"},
	"UDP6":                    {v2(0x21, 0x22, tcp6), "[2001:db8::7]:7777", "[2001:db8::1]:8888"},
	"UDP6, mapped":            {v2(0x21, 0x22, mapped), "192.0.2.7:7777", "198.51.100.1:8888"},
	"fields":                  {v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_AUTHORITY, "example.com"), tlv(proxyproto.PP2_TYPE_NOOP, "")), "192.0.2.7:7777", "198.51.100.1:8888"},
	"a checksum":              {summed(v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")), 16+12+3), "192.0.2.7:7777", "198.51.100.1:8888"},
	"the longest":             {v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_NOOP, strings.Repeat("x", maxHeader-v2Prefix-12-3))), "192.0.2.7:7777", "198.51.100.1:8888"},
	"unix":                    {v2(0x21, 0x32, paths), "", ""},
	"UNSPEC":                  {v2(0x21, 0x00, ""), "", ""},
	"UNSPEC, something":       {v2(0x21, 0x00, "abc"), "", ""},
	"LOCAL":                   {v2(0x20, 0x00, ""), "", ""},
	"LOCAL, addresses":        {v2(0x20, 0x12, tcp4), "", ""},
	"LOCAL, of a stream":      {v2(0x20, 0x11, tcp4), "", ""},
	"LOCAL, something":        {v2(0x20, 0x12, "abc"), "", ""},
	"LOCAL, a wrong checksum": {v2(0x20, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")), "", ""},
}

var invalidDatagrams = map[string]struct {
	datagram string
	want     error // nil: any
}{
	"nothing":                  {"", errNoHeader},
	"something else":           {"\x12\x34\x01\x00\x00\x01", errNoHeader},
	"the beginning":            {string(proxyproto.SIGV2[:11]), errNoHeader},
	"the signature alone":      {string(proxyproto.SIGV2), errCut},
	"version 1":                {"PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n", errVersion1},
	"version 1, UDP":           {"PROXY UDP4 192.0.2.7 198.51.100.1 7777 8888\r\n", errVersion1},
	"version 1, UNKNOWN":       {"PROXY UNKNOWN\r\n", errVersion1},
	"version 3":                {v2(0x31, 0x12, tcp4), errVersion},
	"another command":          {v2(0x22, 0x12, tcp4), errVersion},
	"TCP4":                     {v2(0x21, 0x11, tcp4), errFamily},
	"TCP6":                     {v2(0x21, 0x21, tcp6), errFamily},
	"a unix stream":            {v2(0x21, 0x31, paths), errFamily},
	"another family":           {v2(0x21, 0x42, tcp4), errFamily},
	"a family, no transport":   {v2(0x21, 0x10, tcp4), errFamily},
	"another transport":        {v2(0x21, 0x13, tcp4), errFamily},
	"addresses cut":            {v2(0x21, 0x12, tcp4[:11]), errAddresses},
	"IPv6 addresses cut":       {v2(0x21, 0x22, tcp4), errAddresses},
	"no addresses":             {v2(0x21, 0x12, ""), errAddresses},
	"longer than the datagram": {v2(0x21, 0x12, tcp4)[:27], errCut},
	"LOCAL, longer":            {string(proxyproto.SIGV2) + "\x20\x00\x00\x01", errCut},
	"longer than may be":       {v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_NOOP, strings.Repeat("x", maxHeader-v2Prefix-12-2))), errTooLong},
	"65,535 bytes":             {string(proxyproto.SIGV2) + "\x21\x12\xff\xff" + tcp4, errTooLong},
	"a field cut":              {v2(0x21, 0x12, tcp4, []byte{2}), errFields},
	"a field that overruns":    {v2(0x21, 0x12, tcp4, []byte{2, 0, 9, 'a'}), errFields},
	"the second one overruns":  {v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_NOOP, "a"), []byte{2, 0xff, 0xff}), errFields},
	"a wrong checksum":         {v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")), nil},
	"a short checksum":         {v2(0x21, 0x12, tcp4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00")), nil},
}

func TestParseDatagram(t *testing.T) {
	t.Parallel()
	named := func(addr interface {
		IsValid() bool
		String() string
	},
	) string {
		if !addr.IsValid() {
			return ""
		}
		return addr.String()
	}
	for name, c := range validDatagrams {
		for _, payload := range []string{"", "payload", c.head} {
			h, err := parseDatagram([]byte(c.head + payload))
			if err != nil || h.Size != len(c.head) || named(h.Client) != c.client || named(h.Local) != c.local {
				t.Errorf("%s: %+v, %v, want %d bytes, client %q, local %q", name, h, err, len(c.head), c.client, c.local)
			}
		}
		for n := range len(c.head) {
			if h, err := parseDatagram([]byte(c.head[:n])); err == nil {
				t.Errorf("%s, cut at %d: %+v", name, n, h)
			}
		}
	}
	for name, c := range invalidDatagrams {
		if h, err := parseDatagram([]byte(c.datagram)); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v, want %v", name, h, err, c.want)
		}
	}
}

// The receive loop serves all clients.
func TestParseDatagramAllocatesNothing(t *testing.T) {
	for _, b := range [][]byte{
		[]byte(validDatagrams["UDP4"].head), []byte(validDatagrams["UDP6"].head), []byte(validDatagrams["a checksum"].head),
		[]byte(invalidDatagrams["something else"].datagram), []byte(invalidDatagrams["a field that overruns"].datagram),
	} {
		if n := testing.AllocsPerRun(100, func() { _, _ = parseDatagram(b) }); n > 0 {
			t.Errorf("%q: %v allocations", b, n)
		}
	}
}

func BenchmarkParseDatagram(b *testing.B) {
	datagram := []byte(validDatagrams["fields"].head + "payload")
	for b.Loop() {
		if _, err := parseDatagram(datagram); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzDatagram compares with go-proxyproto what is said of any datagram. That differs where the block of addresses is not to be looked at.
func FuzzDatagram(f *testing.F) {
	for _, c := range validDatagrams {
		f.Add([]byte(c.head + "payload"))
	}
	for _, c := range invalidDatagrams {
		f.Add([]byte(c.datagram))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseDatagram(b)
		if err != nil && (h.Size != 0 || h.Client.IsValid()) {
			t.Errorf("%+v beside %v", h, err)
		}
		if err == nil && (h.Size < v2Prefix || h.Size > len(b) || h.Client.IsValid() != h.Local.IsValid()) {
			t.Fatalf("%+v of %d bytes", h, len(b))
		}
		want, payload, failed := proxyproto.ParseUDPDatagram(b)
		if failed == nil && want.Command == proxyproto.PROXY && want.Version == 2 {
			_, failed = want.TLVs()
			if failed == nil {
				failed = checkSum(b[:len(b)-len(payload)])
			}
			isDatagram := want.TransportProtocol.IsDatagram()
			if accepted := failed == nil && isDatagram && len(b)-len(payload) <= maxHeader; accepted != (err == nil) {
				t.Fatalf("%+v, %v, and go-proxyproto says %+v, %v", h, err, want, failed)
			} else if !accepted {
				return
			}
			if h.Size != len(b)-len(payload) {
				t.Errorf("a header of %d bytes, and go-proxyproto leaves %d of %d", h.Size, len(payload), len(b))
			}
			client, ok := want.SourceAddr.(*net.UDPAddr)
			if ok != h.Client.IsValid() || ok && unmapped(client.AddrPort()) != h.Client {
				t.Errorf("client %s, and go-proxyproto says %s", h.Client, want.SourceAddr)
			}
			if local, ok := want.DestinationAddr.(*net.UDPAddr); ok && unmapped(local.AddrPort()) != h.Local {
				t.Errorf("local %s, and go-proxyproto says %s", h.Local, want.DestinationAddr)
			}
		} else if err == nil && h.Client.IsValid() {
			t.Errorf("%+v, and go-proxyproto says %v", h, failed)
		}
	})
}
