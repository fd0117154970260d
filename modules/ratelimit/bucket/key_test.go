package bucket_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

func TestKeyStrings(t *testing.T) {
	t.Parallel()
	l := bucket.NewCount(7, 1)
	for _, c := range []struct {
		addr string
		bits int
		want string
	}{
		{"192.0.2.1", 32, "192.0.2.1"},
		{"::ffff:192.0.2.1", 32, "192.0.2.1"},
		{"192.0.2.1", 24, "192.0.2.0/24"},
		{"0.0.0.0", 32, "0.0.0.0"},
		{"2001:db8::1", 64, "2001:db8::/64"},
		{"2001:db8::1", 128, "2001:db8::1"},
		{"fe80::1%eth0", 128, "fe80::1"},
		{"::192.0.2.1", 128, "::c000:201"},
	} {
		if got := l.ForAddr(netip.MustParseAddr(c.addr), c.bits).String(); got != c.want {
			t.Errorf("%s/%d: %s, want %s", c.addr, c.bits, got, c.want)
		}
	}
	for text, want := range map[string]string{
		"":                     "",
		"a.example":            "a.example",
		"exactly-20-bytes.com": "exactly-20-bytes.com",
	} {
		if got := l.ForText(text).String(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	long := strings.Repeat("a long name ", 10)
	if got := l.ForText(long).String(); !strings.HasPrefix(got, "a long name a~") || len(got) != 13+1+16 {
		t.Errorf("a long text: %q", got)
	}
}

// Whatever differs has keys that differ, and whatever is alike has the same.
func TestKeysAreApart(t *testing.T) {
	t.Parallel()
	one, two := bucket.NewCount(1, 1), bucket.NewCount(2, 1)
	addr := netip.MustParseAddr
	seen := make(map[bucket.Key]bool)
	for i, key := range []bucket.Key{
		one.ForAddr(addr("1.2.3.4"), 32), two.ForAddr(addr("1.2.3.4"), 32), one.ForAddr(addr("1.2.3.4"), 24),
		one.ForAddr(addr("::1.2.3.4"), 128), one.ForAddr(addr("::"), 128), one.ForAddr(addr("0.0.0.0"), 32),
		one.ForText(""), one.ForText("\x00"), one.ForText("1.2.3.4"), two.ForText(""),
		one.ForText(strings.Repeat("a", 30)), one.ForText(strings.Repeat("a", 31)),
	} {
		if seen[key] {
			t.Errorf("number %d, %s, has the key of another", i, key)
		}
		seen[key] = true
	}
	if one.ForAddr(addr("2001:db8::1"), 64) != one.ForAddr(addr("2001:db8::ffff:1"), 64) {
		t.Error("addresses of one prefix have two keys")
	}
	if one.ForAddr(addr("fe80::1%eth0"), 128) != one.ForAddr(addr("fe80::1"), 128) {
		t.Error("a zone makes two keys of one address")
	}
}
