package acl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

func TestRuleLabels(t *testing.T) {
	t.Parallel()
	for values, want := range map[string]string{
		"192.0.2.0/24":                     "deny 192.0.2.0/24",
		"192.0.2.0/24 ::1 10.0.0.0/8":      "deny 192.0.2.0/24 and 2 more",
		"file /etc/bad":                    "deny file /etc/bad",
		"url https://u:p@host/a?key=x 10m": "deny url https://host/a",
		"list bans":                        "deny list bans",
		"country RU CN":                    "deny country CN RU",
		"asn 64497 64496":                  "deny asn 64496 64497",
	} {
		s, err := parseRule(strings.Fields(values))
		if err != nil {
			t.Errorf("%s: %v", values, err)
		} else if got := s.label(deny); got != want {
			t.Errorf("%s: %q, want %q", values, got, want)
		}
	}
}

func TestWrongRules(t *testing.T) {
	t.Parallel()
	for values, want := range map[string]string{
		"":                            "expected at least 1 value",
		"10.0.0.1/8":                  `"10.0.0.1/8": expected no bits set behind the prefix: 10.0.0.0/8, or 10.0.0.1 for the one address`,
		"10.0.0.0/8 localhost":        `"localhost": expected an address, a prefix such as 10.0.0.0/8, or a range such as 10.0.0.1-10.0.0.9`,
		"file":                        "file: expected 1 value",
		"file a b":                    `file: "a b": expected 1 value`,
		"url":                         "url: expected 1 to 4 values",
		"url ftp://host/":             `url: "ftp://host/": expected a URL that begins with https:// or http://`,
		"url https:///x":              `url: "https:///x": expected a URL that begins with https:// or http://`,
		"url htp://u:p@h/l?key=x":     `url: "htp://***@h/l?***": expected a URL that begins with https:// or http://`,
		"url https:/u:p@h/":           `url: "***@h/": expected a URL that begins with https:// or http://`,
		"url http://u:%zz?@h/":        `url: "http://***@h/": expected a URL that begins with https:// or http://`,
		"https://u:p@h/l?key=x":       `"https://***@h/l?***": expected a URL behind url and nowhere else`,
		"file https://u:p@h/":         `"https://***@h/": expected a URL behind url and nowhere else`,
		"url http://h/ http://u:p@h/": `"http://***@h/": expected a URL behind url and nowhere else`,
		"url http://h/ soon":          `url: "soon": expected a duration such as 30s`,
		"url http://h/ 1ms":           `url: "1ms": expected at least 1s`,
		"url http://h/ 1h 5s":         `url: "5s": expected timeout and a duration`,
		"url http://h/ timeout":       `url: "timeout": expected timeout and a duration`,
		"url http://h/ timeout 1h":    `url: timeout: "1h": expected a duration from 1s to 10m0s`,
		"url http://h/ timeout 0s":    `url: timeout: "0s": expected a duration from 1s to 10m0s`,
		"url http://h/ timeout x":     `url: timeout: "x": expected a duration such as 30s`,
		"url http://h/ timeout 5s 1h": `url: "timeout 5s 1h": expected timeout and a duration`,
		"list":                        "list: expected 1 value",
		"list a/b":                    `list: "a/b": expected a name of letters, digits, - and _`,
		"list ..":                     `list: "..": expected a name of letters, digits, - and _`,
		"country":                     "country: expected at least 1 value",
		"country cn":                  `country: "cn": expected a country code of two capital letters, such as CN`,
		"country CHN":                 `country: "CHN": expected a country code of two capital letters, such as CN`,
		"country C1":                  `country: "C1": expected a country code of two capital letters, such as CN`,
		"asn":                         "asn: expected at least 1 value",
		"asn AS64496":                 `asn: "AS64496": expected the number of an autonomous system, such as 64496`,
		"asn 0":                       `asn: "0": expected the number of an autonomous system, such as 64496`,
		"asn 4294967296":              `asn: "4294967296": expected the number of an autonomous system, such as 64496`,
		strings.Repeat("x", 1<<10):    `"` + strings.Repeat("x", 64) + `"...: expected an address, a prefix such as 10.0.0.0/8, or a range such as 10.0.0.1-10.0.0.9`,
	} {
		if _, err := parseRule(strings.Fields(values)); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", values, err, want)
		}
	}
}

// Without a default, whom no rule has is treated in the other way than those whom a rule has.
func TestDefault(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"rules":[{"deny":["192.0.2.0/24"]}]}`:                                            "allow",
		`{"rules":[{"allow":["192.0.2.0/24"]}]}`:                                           "deny",
		`{"rules":[{"deny":["192.0.2.0/24"]}],"default":"deny"}`:                           "deny",
		`{"rules":[{"allow":["192.0.2.0/24"]}],"default":"allow"}`:                         "allow",
		`{"rules":[{"deny":["192.0.2.0/24"]},{"allow":["10.0.0.0/8"]}],"default":"allow"}`: "allow",
		`{"default":"deny"}`:  "deny",
		`{"default":"allow"}`: "allow",
	} {
		h, _ := handler(t, config)
		for _, stranger := range []netip.Addr{addr("198.51.100.1"), addr("2001:db8::1"), {}} {
			if got := h.rules.judge(stranger); got.action() != want || got.label != "default "+want {
				t.Errorf("%s: %v: %s, want %s", config, stranger, got.label, want)
			}
		}
	}
}

// The first rule that has the client decides.
func TestFirstRuleDecides(t *testing.T) {
	t.Parallel()
	h, _ := handler(t, `{"rules":[
		{"allow":["192.0.2.7","2001:db8::7"]},
		{"deny":["192.0.2.0/24"]},
		{"allow":["192.0.0.0/16"]},
		{"deny":["192.0.2.7","10.0.0.1-10.0.0.9"]}
	],"default":"allow"}`)
	for client, want := range map[string]string{
		"192.0.2.7":   "allow 192.0.2.7 and 1 more",
		"2001:db8::7": "allow 192.0.2.7 and 1 more",
		"192.0.2.8":   "deny 192.0.2.0/24",
		"192.0.3.8":   "allow 192.0.0.0/16",
		"10.0.0.9":    "deny 192.0.2.7 and 1 more",
		"10.0.0.10":   "default allow",
		"2001:db8::8": "default allow",
	} {
		if got := h.rules.judge(addr(client)); got.label != want {
			t.Errorf("%s: %s, want %s", client, got.label, want)
		}
	}
}

// F10: whatever form an address is written in, in the rule or on the socket, it is the same client. Each kind of rule says
// the same.
func TestEveryRuleAndEveryFormOfAnAddress(t *testing.T) {
	t.Parallel()
	forms := map[string][]string{
		"192.0.2.1":   {"192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.1%eth0"},
		"2001:db8::1": {"2001:db8::1", "2001:db8:0::1", "2001:db8::1%eth0"},
		"fe80::1":     {"fe80::1", "fe80::1%eth0", "fe80::1%2"},
	}
	lists := map[string][]string{
		"192.0.2.1":   {"192.0.2.1", "192.0.2.0/24", "::ffff:192.0.2.1", "::ffff:192.0.2.0/120", "192.0.2.0-192.0.2.9", "::ffff:192.0.2.0-::ffff:192.0.2.9"},
		"2001:db8::1": {"2001:db8::1", "2001:db8::/32", "2001:DB8:0:0::1", "2001:db8::-2001:db8::9"},
		"fe80::1":     {"fe80::1", "fe80::/10", "fe80::1%eth0", "fe80::1%eth1-fe80::9%eth1"},
	}
	other := map[string]string{"192.0.2.1": "198.51.100.1", "2001:db8::1": "2001:db9::1", "fe80::1": "fec0::1%eth0"}
	storage := store(t)
	for client, texts := range lists {
		for _, text := range texts {
			p := publish(t, textAnswer(text))
			f := open(t, tempFile(t, text))
			u := follow(t, p.URL, defaultInterval, storage)
			inline, err := parsePrefixes([]string{text})
			must(t, err)
			all := map[string]*list{"inline": nil, "neighbor": nil, "file": f.content(), "url": u.content()}
			if !strings.Contains(text, "-") {
				d := openList(t, brokenStorage{})
				e, err := (&given{Prefix: text, By: "test"}).entry(time.Now(), nil)
				must(t, err)
				_ = d.add(e)
				all["list"] = d.content()
			}
			for kind, l := range all {
				rs := rules{fallback: rule{allow: true, label: "default"}}
				if kind == "neighbor" {
					rs.add(rule{label: "other"}, []ipset.Range{{First: addr("203.0.113.0"), Last: addr("203.0.113.9")}})
				}
				rs.add(rule{label: kind, list: l}, inline)
				rs.addFixed()
				for _, form := range forms[client] {
					if got := rs.judge(addr(form)); got.allow {
						t.Errorf("%s %s: %s is let in", kind, text, form)
					}
				}
				if got := rs.judge(addr(other[client])); !got.allow {
					t.Errorf("%s %s: %s is denied", kind, text, other[client])
				}
			}
		}
	}
}

// counted is a lookup that counts.
type counted struct {
	lookup
	n *int
}

func (c counted) first(addr netip.Addr) int {
	*c.n++
	return c.lookup.first(addr)
}

func (rs *rules) count() *int {
	n := new(int)
	for i := range rs.lookups {
		rs.lookups[i] = counted{rs.lookups[i], n}
	}
	return n
}

// However many rules with addresses there are, a decision looks up one set for all neighbours of them, and the rule that is named
// is still the first one that has the client.
func TestNeighborsAreLookedUpAtOnce(t *testing.T) {
	t.Parallel()
	const lines = 20_000
	line := func(n int) string { return fmt.Sprintf(`{"deny":["10.%d.%d.0/28"]}`, n>>8, n&255) }
	var many []string
	for n := range lines {
		many = append(many, line(n))
	}
	config := `{"rules":[` + strings.Join(many, ",") + `,{"deny":["10.0.0.0/8"]},{"deny":["list","between"]},{"allow":["10.0.1.0/24"]},{"deny":["2001:db8::/32"]}],"default":"allow"}`
	for _, c := range []struct {
		client, want string
		lookups      int
	}{
		{"10.0.0.5", "deny 10.0.0.0/28", 1},
		{"10.78.31.7", "deny 10.78.31.0/28", 1},
		{"10.78.31.77", "deny 10.0.0.0/8", 1},
		{"192.0.2.1", "default allow", 3},
		{"2001:db8::1", "deny 2001:db8::/32", 3},
	} {
		h, unload := handler(t, config)
		m, unloadMatcher := provision[*Matcher](t, "layer4.matchers.acl", config)
		for what, rs := range map[string]*rules{"handler": &h.rules, "matcher": &m.rules} {
			n := rs.count()
			if got := rs.judge(addr(c.client)); got.label != c.want || *n != c.lookups {
				t.Errorf("%s: %s: %s after %d lookups, want %s after %d", what, c.client, got.label, *n, c.want, c.lookups)
			}
		}
		unload()
		unloadMatcher()
	}
}

// BenchmarkJudge judges clients by 20,000 rules with an address each, and by one rule that has them all.
func BenchmarkJudge(b *testing.B) {
	const lines = 20_000
	var many, one []string
	for n := range lines {
		prefix := fmt.Sprintf(`"10.%d.%d.0/28"`, n>>8, n&255)
		many, one = append(many, `{"deny":[`+prefix+`]}`), append(one, prefix)
	}
	for name, config := range map[string]string{
		"lines=20000": `{"rules":[` + strings.Join(many, ",") + `]}`,
		"lines=1":     `{"rules":[{"deny":[` + strings.Join(one, ",") + `]}]}`,
	} {
		h, _ := handler(b, config)
		for what, client := range map[string]string{"denied": "10.39.16.5", "allowed": "192.0.2.1"} {
			client := addr(client)
			b.Run(name+"/"+what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					h.rules.judge(client)
				}
			})
		}
	}
}

func TestWrongConfigs(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{}`: "expected at least one rule, or a default",
		`{"rules":[{"deny":["192.0.2.0/24"]},{"allow":["10.0.0.0/8"]}]}`: `default: expected allow or deny, because there are both "deny 192.0.2.0/24" and "allow 10.0.0.0/8"`,
		`{"rules":[{"deny":["file","/none"]}]}`:                          "deny file /none: stat /none: no such file or directory",
		`{"rules":[{"deny":["country","CN"]}]}`:                          "deny: country: expected the option country_database with the path of a database",
		`{"rules":[{"allow":["asn","1"]}]}`:                              "allow: asn: expected the option asn_database with the path of a database",
		`{"rules":[{"deny":["{env.NONE}"]}]}`:                            `deny: "{env.NONE}", which is "": expected an address, a prefix such as 10.0.0.0/8, or a range such as 10.0.0.1-10.0.0.9`,
		`{"rules":[{"deny":["::1"],"allow":["::2"]}]}`:                   `expected either "deny" or "allow" with a list of strings`,
		`{"rules":[{}]}`:               `expected either "deny" or "allow" with a list of strings`,
		`{"rules":[{"drop":["::1"]}]}`: `unknown option "drop": expected one of deny, allow`,
		`{"default":"drop"}`:           `default: "drop": expected allow or deny`,
	} {
		for _, id := range []string{"layer4.handlers.acl", "layer4.matchers.acl"} {
			_, _, err := tryProvision[any](t, id, config)
			if err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s %s:\n got %v\nwant %s", id, config, err, want)
			}
		}
	}
	if n := pooled(); n != 0 {
		t.Errorf("%d lists are left", n)
	}
}

// pooled counts the lists that somebody uses, of tests that share none with others.
func pooled() (n int) {
	sources.Each(func(key sourceKey, _ source) bool {
		if key.location == "/none" {
			n++
		}
		return true
	})
	return n
}

func TestRuleJSONIsStable(t *testing.T) {
	t.Parallel()
	in := `{"rules":[{"deny":["list","bans"]},{"allow":["10.0.0.0/8"]}],"default":"deny","on_deny":["tarpit","30s"],"enforce":"new"}`
	var h Handler
	must(t, json.Unmarshal([]byte(in), &h))
	out, err := json.Marshal(&h)
	must(t, err)
	if string(out) != in {
		t.Errorf("got  %s\nwant %s", out, in)
	}
}
