package ipset

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"10.0.0.0/8":                          "10.0.0.0-10.255.255.255",
		"10.0.0.0/9":                          "10.0.0.0-10.127.255.255",
		"192.0.2.7":                           "192.0.2.7-192.0.2.7",
		"192.0.2.7/32":                        "192.0.2.7-192.0.2.7",
		"0.0.0.0/0":                           "0.0.0.0-255.255.255.255",
		"2001:db8::/32":                       "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
		"2001:db8::/33":                       "2001:db8::-2001:db8:7fff:ffff:ffff:ffff:ffff:ffff",
		"::/0":                                "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		"2001:DB8::1":                         "2001:db8::1-2001:db8::1",
		"::ffff:10.0.0.0/104":                 "10.0.0.0-10.255.255.255",
		"::ffff:192.0.2.7":                    "192.0.2.7-192.0.2.7",
		"::ffff:0:0/96":                       "0.0.0.0-255.255.255.255",
		"fe80::1%eth0":                        "fe80::1-fe80::1",
		"fe80::%eth0/10":                      "fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		"10.0.0.1-10.0.0.9":                   "10.0.0.1-10.0.0.9",
		"10.0.0.1 - 10.0.0.9":                 "10.0.0.1-10.0.0.9",
		"10.0.0.1-10.0.0.1":                   "10.0.0.1-10.0.0.1",
		"2001:db8::5-2001:db8::1:0":           "2001:db8::5-2001:db8::1:0",
		"::ffff:10.0.0.1-10.0.0.9":            "10.0.0.1-10.0.0.9",
		"fe80::1%eth0-fe80::2%eth1":           "fe80::1-fe80::2",
		"::ffff:10.0.0.1 - ::ffff:10.0.0.9":   "10.0.0.1-10.0.0.9",
		"255.255.255.255-255.255.255.255":     "255.255.255.255-255.255.255.255",
		"::ffff:10.0.0.1-::ffff:10.255.255.1": "10.0.0.1-10.255.255.1",
	} {
		got, err := Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if text := got.First.String() + "-" + got.Last.String(); text != want {
			t.Errorf("%s: %s, want %s", in, text, want)
		}
	}
}

func TestParseWrong(t *testing.T) {
	t.Parallel()
	form := ": " + errForm.Error()
	for in, want := range map[string]string{
		"":                        `""` + form,
		"localhost":               `"localhost"` + form,
		"10.0.0":                  `"10.0.0"` + form,
		"010.0.0.1":               `"010.0.0.1"` + form, // octal for some, decimal for others
		"10.0.0.256":              `"10.0.0.256"` + form,
		"10.0.0.0/":               `"10.0.0.0/": expected a prefix length from 0 to 32`,
		"10.0.0.0/33":             `"10.0.0.0/33": expected a prefix length from 0 to 32`,
		"10.0.0.0/08":             `"10.0.0.0/08": expected a prefix length from 0 to 32`,
		"10.0.0.0/+8":             `"10.0.0.0/+8": expected a prefix length from 0 to 32`,
		"10.0.0.0/-8":             `"10.0.0.0/-8"` + form,
		"10.0.0.0/255.0.0.0":      `"10.0.0.0/255.0.0.0": expected a prefix length from 0 to 32`,
		"2001:db8::/129":          `"2001:db8::/129": expected a prefix length from 0 to 128`,
		"10.0.0.1/8":              `"10.0.0.1/8": expected no bits set behind the prefix: 10.0.0.0/8, or 10.0.0.1 for the one address`,
		"2001:db8::1/32":          `"2001:db8::1/32": expected no bits set behind the prefix: 2001:db8::/32, or 2001:db8::1 for the one address`,
		"::ffff:10.0.0.1/104":     `"::ffff:10.0.0.1/104": expected no bits set behind the prefix: 10.0.0.0/8, or 10.0.0.1 for the one address`,
		"::ffff:0:0/95":           `"::ffff:0:0/95": expected no bits set behind the prefix: ::fffe:0:0/95, or ::ffff:0.0.0.0 for the one address`,
		"10.0.0.9-10.0.0.1":       `"10.0.0.9-10.0.0.1": expected the lower address first`,
		"10.0.0.1-2001:db8::1":    `"10.0.0.1-2001:db8::1": expected two addresses of one family`,
		"10.0.0.1-":               `"10.0.0.1-"` + form,
		"-10.0.0.1":               `"-10.0.0.1"` + form,
		"10.0.0.1-10.0.0.2-3":     `"10.0.0.1-10.0.0.2-3"` + form,
		"10.0.0.0/8-11.0.0.0/8":   `"10.0.0.0/8-11.0.0.0/8"` + form,
		"10.0.0.1 10.0.0.2":       `"10.0.0.1 10.0.0.2"` + form,
		strings.Repeat("x", 1000): `"` + strings.Repeat("x", maxQuoted) + `"...` + form,
	} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		} else if err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"10.0.0.0/8", "::ffff:10.0.0.0/104", "fe80::1%eth0", "10.0.0.1-10.0.0.9", "10.0.0.1/8", "::/0", "2001:db8::-2001:db8::ffff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if len(err.Error()) > 600 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if r.First.BitLen() != r.Last.BitLen() || r.Last.Less(r.First) || r.First.Is4In6() || r.First.Zone() != "" {
			t.Fatalf("%q: %v", s, r)
		}
		if r.Last.Is4In6() {
			return // the end of ::/80, say, which is IPv4 when it stands alone
		}
		again, err := Parse(r.First.String() + "-" + r.Last.String())
		if err != nil || again != r {
			t.Fatalf("%q: %v, and what it prints as is %v (%v)", s, r, again, err)
		}
		if prefix, err := ParsePrefix(s); err == nil && Of(prefix) != r {
			t.Fatalf("%q: prefix %v, range %v", s, prefix, r)
		}
	})
}
