package ipset

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func readFile(t *testing.T, name string, hostBits HostBits) (*Set, Report, error) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "lists", name))
	if err != nil {
		t.Fatal(err)
	}
	return Read(bytes.NewReader(data), hostBits)
}

func mustHave(t *testing.T, name string, set *Set, in, out string) {
	t.Helper()
	for _, addr := range strings.Fields(in) {
		if !set.Contains(netip.MustParseAddr(addr)) {
			t.Errorf("%s: %s is missing", name, addr)
		}
	}
	for _, addr := range strings.Fields(out) {
		if set.Contains(netip.MustParseAddr(addr)) {
			t.Errorf("%s: %s should not be there", name, addr)
		}
	}
}

// Each format in which lists come is understood whole.
func TestReadFormats(t *testing.T) {
	t.Parallel()
	const (
		usual      = "192.0.2.1 198.51.100.0 198.51.100.255 2001:db8::1"
		notUsual   = "192.0.2.0 192.0.2.2 198.51.101.0 2001:db9::"
		spamhaus   = "192.0.2.0 192.0.2.255 198.51.100.127 2001:db8::1"
		noSpamhaus = "192.0.3.0 198.51.100.128 2001:db9::"
	)
	for name, c := range map[string]struct {
		lines   int
		in, out string
	}{
		"ipset-save.txt": {
			7, "192.0.2.1 198.51.100.9 203.0.113.0 203.0.113.127 203.0.113.192 203.0.113.207 2001:db8::1 2001:db8:2::",
			"192.0.2.0 203.0.113.128 203.0.113.191 203.0.113.208 203.0.113.255 203.0.114.0 2001:db8:1::1",
		},
		"spamhaus-drop.txt":  {3, spamhaus, noSpamhaus},
		"spamhaus-drop.json": {3, spamhaus, noSpamhaus},
		"commas.csv":         {4, usual + " 203.0.113.10 203.0.113.19", notUsual + " 203.0.113.9 203.0.113.20"},
		"semicolons.csv":     {3, usual, notUsual},
		"tabs.tsv":           {3, usual, notUsual},
		"counts.txt":         {3, "192.0.2.1 198.51.100.7 2001:db8::7", "192.0.2.9 0.0.0.9"},
		"netmasks.txt": {
			4, "192.0.2.0 192.0.2.255 198.51.100.127 203.0.113.8 203.0.113.15 203.0.113.1",
			"192.0.3.0 198.51.100.128 203.0.113.7 203.0.113.16 203.0.113.2 255.255.255.0",
		},
		"ranges.txt": {
			4, "192.0.2.10 192.0.2.19 198.51.100.0 198.51.100.255 203.0.113.9 2001:db8::ff",
			"192.0.2.9 192.0.2.20 203.0.113.10 2001:db8::100",
		},
		"packed.gz":          {3, usual, notUsual},
		"packed-utf16.gz":    {3, usual, notUsual},
		"utf16le.txt":        {3, usual, notUsual},
		"utf16be.txt":        {3, usual, notUsual},
		"utf8-mark-crlf.txt": {3, usual, notUsual},
	} {
		set, report, err := readFile(t, name, RefuseHostBits)
		if err != nil || report.Bad != 0 || report.Lines != c.lines {
			t.Errorf("%s: %v, %+v, want %d lines", name, err, report, c.lines)
			continue
		}
		mustHave(t, name, set, c.in, c.out)
	}
}

// A prefix with bits set behind its length stands for its network in a list of whom to keep out; in one of whom to let in it
// lets in nobody.
func TestReadHostBits(t *testing.T) {
	t.Parallel()
	const in, out = "192.0.2.9", "198.51.100.7 198.51.100.12 203.0.113.63 203.0.113.80 2001:db8:0:1::"
	const networks = "198.51.100.8 198.51.100.11 203.0.113.64 203.0.113.79 2001:db8::1 2001:db8::ffff"
	set, report, err := readFile(t, "host-bits.txt", MaskHostBits)
	if err != nil || report.Bad != 0 || report.Lines != 5 || report.Masked != 4 {
		t.Fatalf("%v, %+v", err, report)
	}
	mustHave(t, "masked", set, in+" "+networks, out)
	if got, want := report.Mask.Error(), `line 1: "198.51.100.9/30": expected no bits set behind the prefix: 198.51.100.8/30, or 198.51.100.9 for the one address`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	_, report, err = readFile(t, "host-bits.txt", RefuseHostBits)
	if err == nil || report.Bad != 4 || report.Masked != 0 {
		t.Errorf("%v, %+v", err, report)
	}
	set, report, err = Read(strings.NewReader("192.0.2.9/30\n198.51.100.1\n"), RefuseHostBits)
	if err != nil || report.Bad != 1 {
		t.Fatalf("%v, %+v", err, report)
	}
	mustHave(t, "refused", set, "198.51.100.1", "192.0.2.9 192.0.2.8")

	// The network of this one has no IPv4 address at all, so that it would keep nobody out.
	if _, report, _ := Read(strings.NewReader("::ffff:192.0.2.1/64\n192.0.2.1\n"), MaskHostBits); report.Bad != 1 {
		t.Errorf("a mapped address with a prefix beyond IPv4: %+v", report)
	}
}

// What is no list of addresses is refused as a whole, and says why.
func TestReadNoLists(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"hosts.txt":         errHosts.Error(),
		"names.txt":         errForm.Error(),
		"two-sets.txt":      `line 4: set "bad": expected only one set of a family, there is "friends" already`,
		"other-column.csv":  errForm.Error(),
		"heading-alone.csv": errForm.Error(),
		"error.json":        errObject.Error(),
	} {
		for _, hostBits := range []HostBits{RefuseHostBits, MaskHostBits} {
			if set, report, err := readFile(t, name, hostBits); err == nil || set != nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, %+v, want %s", name, err, report, want)
			}
		}
	}
	for _, list := range []string{
		"error, try again later\n",
		`{"type":"metadata","records":3}`,
		"add bad 192.0.2.0/24\nadd bad 192.0.2.7 nomatch\n198.51.100.1-198.51.100.9\n",
		// Exceptions that are left out let in whom they keep out, or the other way round.
		"add bad 192.0.2.0/24\nadd bad 192.0.2.9/25 nomatch\n",
		"add bad 192.0.2.0/24\nadd bad 192.0.2.7,tcp:80 timeout 9 nomatch\n",
		"add bad 192.0.2.0/24\nadd bad 192.0.2.7-192.0.2.9 nomatch\n",
	} {
		for _, hostBits := range []HostBits{MaskHostBits, RefuseHostBits} {
			if _, report, err := Read(strings.NewReader(list), hostBits); err == nil {
				t.Errorf("%q: %+v", list, report)
			}
		}
	}
}

// Lines that could mean more, or less, than their first column says are not understood.
func TestReadDoubtfulLines(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]error{
		"192.0.2.0 24":                           errRemark, // a prefix or a count
		"192.0.2.1 somebody":                     errRemark,
		"192.0.2.1 // somebody":                  errRemark,
		"192.0.2.0\t192.0.2.255\t24":             errTwo, // a range or a source and a destination
		"192.0.2.0,192.0.2.255":                  errTwo,
		"192.0.2.0 0.0.0.255":                    errTwo, // a mask the other way round
		"192.0.2.0/24 255.255.255.0":             errTwo,
		"2001:db8:: 255.255.255.0":               errTwo,
		`"192.0.2.1`:                             errQuote,
		"127.0.0.1\tlocalhost":                   errHosts,
		":: ads.example":                         errHosts,
		"add bad 192.0.2.1-192.0.2.9":            errCommand,
		"add bad":                                errCommand,
		`add bad 192.0.2.1 comment "x`:           errCommand,
		"add bad 192.0.2.1,tcp:80":               errForm,
		"add all bad4":                           errForm,
		"del bad 192.0.2.1":                      errForm,
		`{"cidr":"192.0.2.0/24"`:                 errObject,
		`{"cidr":7}`:                             errObject,
		`{"ip":"192.0.2.1","cidr":"10.0.0.0/8"}`: errObject,
		`{"asn":64496}`:                          errObject,
	} {
		_, report, err := Read(strings.NewReader("198.51.100.1\n"+line+"\n"), MaskHostBits)
		if err != nil || report.Bad != 1 || !errors.Is(report.First[0].Err, want) {
			t.Errorf("%s: %v, %+v, want %v", line, err, report, want)
		}
	}
	for _, line := range []string{"192.0.2.0/255.0.255.0", "192.0.2.0/0.0.0.255", "2001:db8::/255.255.0.0", "x/255.255.255.0"} {
		_, report, err := Read(strings.NewReader("198.51.100.1\n"+line+"\n"), MaskHostBits)
		if err != nil || report.Bad != 1 || !strings.Contains(report.First[0].Error(), "expected a netmask such as 255.255.255.0") {
			t.Errorf("%s: %v, %+v", line, err, report)
		}
	}
}

// The text of a bad line is repeated in part, and with nothing in it that a terminal could take for a command.
func TestReadQuotesBadLines(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"\x1b[31m\u202e\x00x", strings.Repeat("\x1b", 1000), `{"\u001b`, strings.Repeat("x", 10000), "192.0.2.1 \x07", "add x \x1b"} {
		_, report, err := Read(strings.NewReader("192.0.2.1\n"+line+"\n"), MaskHostBits)
		if err != nil || report.Bad != 1 {
			t.Fatalf("%q: %v, %+v", line, err, report)
		}
		text := report.First[0].Error()
		if !strings.HasPrefix(text, "line 2: \"") || len(text) > 500 || strings.ContainsAny(text, "\x1b\x00\x07\u202e") {
			t.Errorf("%q", text)
		}
	}
}

// endless returns the same bytes for ever.
type endless struct{ block, rest []byte }

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		e.rest = e.block
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// Whatever a list unpacks to is bounded, and so is what unpacks to nothing.
func TestReadPackedIsBounded(t *testing.T) {
	t.Parallel()
	pack := func(extra int, text string) []byte {
		var packed bytes.Buffer
		packer := gzip.NewWriter(&packed)
		packer.Extra = make([]byte, extra)
		_, err := io.WriteString(packer, text)
		if err = errors.Join(err, packer.Close()); err != nil {
			t.Fatal(err)
		}
		return packed.Bytes()
	}
	for name, block := range map[string][]byte{
		"comments": pack(0, strings.Repeat("#"+strings.Repeat("x", 4000)+"\n", 1000)),
		"one line": pack(0, strings.Repeat("1", 1<<20)),
		"zeros":    pack(0, strings.Repeat("\x00", 1<<20)),
		"nothing":  pack(1<<16-1, ""),
	} {
		if _, report, err := Read(&endless{block: block}, MaskHostBits); !errors.Is(err, ErrTooLong) && !errors.Is(err, ErrTooMany) {
			t.Errorf("%s: %v, %+v", name, err, report)
		}
	}
	data, err := os.ReadFile("testdata/lists/packed.gz")
	if err != nil {
		t.Fatal(err)
	}
	for cut := 1; cut < len(data); cut++ {
		if _, report, err := Read(bytes.NewReader(data[:cut]), MaskHostBits); err == nil {
			t.Errorf("%d of %d bytes: %+v", cut, len(data), report)
		}
	}
	if _, _, err := Read(bytes.NewReader(append(slices.Clone(data), "more"...)), MaskHostBits); err == nil {
		t.Error("with something behind it: no error")
	}
}

func TestReadTooMany(t *testing.T) {
	t.Parallel()
	for lines, want := range map[int]error{10: nil, 11: ErrTooMany} {
		p := parser{most: 10}
		if _, _, err := p.read(strings.NewReader(strings.Repeat("::\n", lines))); !errors.Is(err, want) {
			t.Errorf("%d lines: %v, want %v", lines, err, want)
		}
	}
}

// Of the prefixes that contain an address the smallest one decides, whatever their order.
func TestExceptions(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for round := range 300 {
		var builder Builder
		type rule struct {
			prefix netip.Prefix
			except bool
		}
		var rules []rule
		for range 1 + random.IntN(40) {
			addr, most := netip.AddrFrom4([4]byte{255, 255, 255, byte(random.IntN(256))}), 32
			if round%2 == 0 {
				addr, most = netip.AddrFrom16([16]byte{15: byte(random.IntN(256))}), 128
			}
			prefix, _ := addr.Prefix(most - random.IntN(9))
			r := rule{prefix, random.IntN(2) == 0}
			rules = append(rules, r)
			if r.except {
				builder.Except(Of(prefix))
			} else {
				builder.Add(Of(prefix))
			}
		}
		set := builder.Set()
		for last := range 256 {
			addr := netip.AddrFrom4([4]byte{255, 255, 255, byte(last)})
			if round%2 == 0 {
				addr = netip.AddrFrom16([16]byte{15: byte(last)})
			}
			want, length := false, -1
			for _, r := range rules {
				if r.prefix.Contains(addr) && (r.prefix.Bits() > length || r.prefix.Bits() == length && r.except) {
					want, length = !r.except, r.prefix.Bits()
				}
			}
			if got := set.Contains(addr); got != want {
				t.Fatalf("%v of %v: %t, want %t", addr, rules, got, want)
			}
		}
	}
}

// A list with as many exceptions as there is room for is made in little time. The bound is generous, for machines that are busy.
func TestManyExceptions(t *testing.T) {
	t.Parallel()
	var builder Builder
	for n := range uint32(1 << 16) {
		for length := 32; length > 20; length -= 4 {
			prefix, _ := addr4(n << 4).Prefix(length)
			if length%8 == 0 {
				builder.Add(Of(prefix))
			} else {
				builder.Except(Of(prefix))
			}
		}
	}
	start := time.Now()
	set := builder.Set()
	if took := time.Since(start); took > time.Minute {
		t.Errorf("took %v", took)
	}
	mustHave(t, "many", set, "0.0.0.0 0.0.0.16", "0.0.0.1 0.0.0.15")
}
