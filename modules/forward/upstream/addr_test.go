package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Addr{
		"127.0.0.1:9000":                    {"", "127.0.0.1", 9000, 9000},
		"db1.internal:5432":                 {"", "db1.internal", 5432, 5432},
		"db_1:5432":                         {"", "db_1", 5432, 5432},
		"db.internal.:5432":                 {"", "db.internal.", 5432, 5432},
		"1:80":                              {"", "1", 80, 80},
		"[::1]:80":                          {"", "::1", 80, 80},
		"[fe80::1%eth0]:80":                 {"", "fe80::1%eth0", 80, 80},
		"[::ffff:10.0.0.1]:80":              {"", "::ffff:10.0.0.1", 80, 80},
		":9000":                             {"", "", 9000, 9000},
		"a:1":                               {"", "a", 1, 1},
		"a:65535":                           {"", "a", 65535, 65535},
		"a:00080":                           {"", "a", 80, 80},
		"a:7000-7010":                       {"", "a", 7000, 7010},
		"a:7000-7000":                       {"", "a", 7000, 7000},
		"a:1-65535":                         {"", "a", 1, 65535},
		"[::1]:7000-7010":                   {"", "::1", 7000, 7010},
		"tcp/a:80":                          {"tcp", "a", 80, 80},
		"TCP/a:80":                          {"tcp", "a", 80, 80},
		"tcp4/a:80":                         {"tcp4", "a", 80, 80},
		"tcp4/10.0.0.1:80":                  {"tcp4", "10.0.0.1", 80, 80},
		"tcp4/[::ffff:10.0.0.1]:80":         {"tcp4", "::ffff:10.0.0.1", 80, 80},
		"tcp4/:80":                          {"tcp4", "", 80, 80},
		"tcp6/a:80":                         {"tcp6", "a", 80, 80},
		"tcp6/[::1]:7000-7010":              {"tcp6", "::1", 7000, 7010},
		"udp/9.9.9.9:53":                    {"udp", "9.9.9.9", 53, 53},
		"UDP4/a:53":                         {"udp4", "a", 53, 53},
		"udp6/[::1]:7000-7010":              {"udp6", "::1", 7000, 7010},
		"unix//run/mysqld/mysqld.sock":      {"unix", "/run/mysqld/mysqld.sock", 0, 0},
		"unix/relative:80/with a space":     {"unix", "relative:80/with a space", 0, 0},
		"unix/@abstract":                    {"unix", "@abstract", 0, 0},
		"UNIX//run/s":                       {"unix", "/run/s", 0, 0},
		"xn--bcher-kva.example:7000-7001":   {"", "xn--bcher-kva.example", 7000, 7001},
		"10.0.0.1.example.com:80":           {"", "10.0.0.1.example.com", 80, 80},
		"tcp/[2001:db8::1]:65534-65535":     {"tcp", "2001:db8::1", 65534, 65535},
		"tcp6/[fe80::1%25]:1":               {"tcp6", "fe80::1%25", 1, 1},
		"MixedCase-1.Example:80":            {"", "MixedCase-1.Example", 80, 80},
		"unix///double/slash is one's path": {"unix", "//double/slash is one's path", 0, 0},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q): got %+v, %v, want %+v", in, got, err, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	const form = "expected host:port, host:first-last or unix//path"
	long := strings.Repeat("a", 255)
	for in, want := range map[string]string{
		"":                         form,
		long + ":80":               `host "` + long + `": expected an IP address or a name`,
		"localhost":                form,
		"127.0.0.1":                form,
		"8080":                     form,
		"::1":                      form,
		"::1:80":                   form,
		"[::1]":                    form,
		"[::1:80":                  form,
		"a:80,b:80":                form,
		"a:80:90":                  form,
		"unix/":                    form,
		"tcp/":                     form,
		"tcp//run/s":               form,
		"a:":                       `port "": expected a number from 1 to 65535`,
		":":                        `port "": expected a number from 1 to 65535`,
		"a:http":                   `port "http": expected a number from 1 to 65535`,
		"a:0":                      `port "0": expected a number from 1 to 65535`,
		"a:65536":                  `port "65536": expected a number from 1 to 65535`,
		"a:+80":                    `port "+80": expected a number from 1 to 65535`,
		"a: 80":                    `port " 80": expected a number from 1 to 65535`,
		"a:-80":                    `port "": expected a number from 1 to 65535`,
		"a:80-":                    `port "": expected a number from 1 to 65535`,
		"a:0-80":                   `port "0": expected a number from 1 to 65535`,
		"a:80-90-100":              `port "90-100": expected a number from 1 to 65535`,
		"a:80-65536":               `port "65536": expected a number from 1 to 65535`,
		"a:7010-7000":              `port range "7010-7000" ends before it starts`,
		"udp/":                     form,
		"udp4/[::1]:53":            `host "::1": expected an IPv4 address or a name`,
		"udp6/10.0.0.1:53":         `host "10.0.0.1": expected an IPv6 address or a name`,
		"unixgram//run/s":          `unknown network "unixgram": expected tcp, tcp4, tcp6, udp, udp4, udp6 or unix`,
		"http://a:80":              `unknown network "http:": expected tcp, tcp4, tcp6, udp, udp4, udp6 or unix`,
		"/run/s":                   `unknown network "": expected tcp, tcp4, tcp6, udp, udp4, udp6 or unix`,
		"a:80/path":                `unknown network "a:80": expected tcp, tcp4, tcp6, udp, udp4, udp6 or unix`,
		"tcp4/[::1]:80":            `host "::1": expected an IPv4 address or a name`,
		"tcp6/10.0.0.1:80":         `host "10.0.0.1": expected an IPv6 address or a name`,
		"tcp6/[::ffff:1.2.3.4]:80": `host "::ffff:1.2.3.4": expected an IPv6 address or a name`,
		"10.0.0.256:80":            `host "10.0.0.256": expected an IP address or a name`,
		"10.0.1:80":                `host "10.0.1": expected an IP address or a name`,
		"[fe80::g]:80":             `host "fe80::g": expected an IP address or a name`,
		"a b:80":                   `host "a b": expected an IP address or a name`,
		"a,b:80":                   `host "a,b": expected an IP address or a name`,
		"*:80":                     `host "*": expected an IP address or a name`,
		"bücher.example:80":        `host "bücher.example": expected an IP address or a name`,
		"tcp/a/b:80":               `host "a/b": expected an IP address or a name`,
		"user@a:80":                `host "user@a": expected an IP address or a name`,
	} {
		want = fmt.Sprintf("%q: %s", in, want)
		got, err := Parse(in)
		if err == nil || err.Error() != want {
			t.Errorf("Parse(%q):\ngot  %v\nwant %s", in, err, want)
		}
		if got != (Addr{}) {
			t.Errorf("Parse(%q): got %+v with an error", in, got)
		}
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{
		"unix//run/s": 0, "a:80": 1, "a:80-80": 1, "a:80-81": 2, "a:1-65535": 65535,
	} {
		if got := mustParse(t, in).Ports(); got != want {
			t.Errorf("%s: got %d ports, want %d", in, got, want)
		}
	}
}

// What can be dialed is what was parsed, spelled in one way: nothing that is accepted panics, and its parts
// make the same address again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", ":", "/", "-", "a:80", ":80", "[::1]:80", "a:7000-7010", "a:7010-7000", "tcp4/[::1]:80", "tcp6/[fe80::1%eth0]:1-2",
		"unix//run/s", "unix/@a", "unix/", "udp/a:1", "TCP/10.0.0.256:80", "[::ffff:1.2.3.4]:65535", "a:80-90-100", "{env.X}:80", "\xff:80",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		a, err := Parse(in)
		if err != nil {
			if !strings.HasPrefix(err.Error(), fmt.Sprintf("%q: ", in)) {
				t.Errorf("the error does not quote %q: %v", in, err)
			}
			return
		}
		if again, err := Parse(spell(a)); again != a {
			t.Errorf("%q is %+v, but %q is %+v, %v", in, a, spell(a), again, err)
		}
		looked := false
		addrs, err := a.resolve(t.Context(), func(_ context.Context, network, host string) ([]netip.Addr, error) {
			looked = true
			if host == "" || strings.ContainsAny(host, ":/ ") {
				t.Errorf("%q: looked up %q", in, host)
			}
			return []netip.Addr{netip.IPv6Loopback()}, nil
		}, max(a.Ports()-1, 0), a.Carries(false) != nil)
		if err != nil || len(addrs) != 1 {
			t.Fatalf("%q: got %v, %v", in, addrs, err)
		}
		if _, fixed := a.fixed(0, false); fixed == looked {
			t.Errorf("%q: fixed %v, looked up %v", in, fixed, looked)
		}
		if tcp, ok := addrs[0].(*net.TCPAddr); ok && tcp.Port != int(a.LastPort) {
			t.Errorf("%q: last port is %d", in, tcp.Port)
		}
	})
}

func spell(a Addr) string {
	if a.Network == "unix" {
		return "unix/" + a.Host
	}
	network := ""
	if a.Network != "" {
		network = a.Network + "/"
	}
	return network + net.JoinHostPort(a.Host, fmt.Sprintf("%d-%d", a.Port, a.LastPort))
}

func TestResolveWithoutLookup(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"127.0.0.1:9000":            "tcp 127.0.0.1:9000",
		"[::1]:9000":                "tcp [::1]:9000",
		"tcp6/[fe80::1%eth0]:9":     "tcp [fe80::1%eth0]:9",
		"tcp4/[::ffff:10.0.0.1]:80": "tcp 10.0.0.1:80",
		"unix//run/s":               "unix /run/s",
		"unix/@a":                   "unix @a",
	} {
		got, err := mustParse(t, in).resolve(t.Context(), noLookup(t), 0, false)
		if err != nil || !slices.Equal(spellings(got), []string{want}) {
			t.Errorf("%s: got %v, %v, want %s", in, spellings(got), err, want)
		}
	}
}

func TestResolveOffset(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"127.0.0.1:7000-7010": "tcp 127.0.0.1:7003",
		"[::1]:65530-65535":   "tcp [::1]:65533",
		"some.name:7000-7010": "tcp 10.1.1.1:7003",
	} {
		got, err := mustParse(t, in).resolve(t.Context(), func(context.Context, string, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.1.1.1")}, nil
		}, 3, false)
		if err != nil || !slices.Equal(spellings(got), []string{want}) {
			t.Errorf("%s: got %v, %v, want %s", in, spellings(got), err, want)
		}
	}
}

func TestResolveForDatagrams(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{ // what is looked up, and the address
		"127.0.0.1:53":      {"", "udp 127.0.0.1:53"},
		"udp6/[::1]:53":     {"", "udp [::1]:53"},
		"some.name:53":      {"ip", "udp 10.1.1.1:53"},
		"udp/some.name:53":  {"ip", "udp 10.1.1.1:53"},
		"udp4/some.name:53": {"ip4", "udp 10.1.1.1:53"},
		"udp6/some.name:53": {"ip6", "udp 10.1.1.1:53"},
	} {
		looked := ""
		got, err := mustParse(t, in).resolve(t.Context(), func(_ context.Context, network, _ string) ([]netip.Addr, error) {
			looked = network
			return []netip.Addr{netip.MustParseAddr("10.1.1.1")}, nil
		}, 0, true)
		if err != nil || looked != want[0] || !slices.Equal(spellings(got), []string{want[1]}) {
			t.Errorf("%s: looked up %q, got %v, %v, want %s", in, looked, spellings(got), err, want)
		}
	}
}

func TestCarries(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{ // the errors for a stream, and for datagrams
		"a:53":        {"", ""},
		"udp/a:53":    {"a udp address can't be sent a stream: expected tcp/host:port or unix//path", ""},
		"udp4/a:53":   {"a udp4 address can't be sent a stream: expected tcp/host:port or unix//path", ""},
		"tcp/a:53":    {"", "a tcp address can't be sent datagrams: expected udp/host:port"},
		"unix//run/s": {"", "a unix address can't be sent datagrams: expected udp/host:port"},
	} {
		for i, datagrams := range []bool{false, true} {
			got := ""
			if err := mustParse(t, in).Carries(datagrams); err != nil {
				got = err.Error()
			}
			if got != want[i] {
				t.Errorf("%s, datagrams %v: got %q, want %q", in, datagrams, got, want[i])
			}
		}
	}
}

func TestResolveNames(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{ // what is looked up
		"some.name:80":      {"ip", "some.name"},
		"tcp/some.name:80":  {"ip", "some.name"},
		"tcp4/some.name:80": {"ip4", "some.name"},
		"tcp6/some.name:80": {"ip6", "some.name"},
		":80":               {"ip", "localhost"},
		"tcp4/:80":          {"ip4", "localhost"},
	} {
		got, err := mustParse(t, in).resolve(t.Context(), func(_ context.Context, network, host string) ([]netip.Addr, error) {
			if network != want[0] || host != want[1] {
				t.Errorf("%s: looked up %s %s, want %s", in, network, host, want)
			}
			return []netip.Addr{
				netip.MustParseAddr("::ffff:10.0.0.1"), // as some resolvers return IPv4
				netip.MustParseAddr("fe80::1%eth0"),
				netip.MustParseAddr("10.0.0.2"),
			}, nil
		}, 0, false)
		if err != nil || !slices.Equal(spellings(got), []string{"tcp 10.0.0.1:80", "tcp [fe80::1%eth0]:80", "tcp 10.0.0.2:80"}) {
			t.Errorf("%s: got %v, %v", in, spellings(got), err)
		}
	}
}

func TestResolvePassesTheErrorOn(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	got, err := mustParse(t, "some.name:80").resolve(t.Context(), func(context.Context, string, string) ([]netip.Addr, error) {
		return nil, broken
	}, 0, false)
	if got != nil || err != broken {
		t.Errorf("got %v, %v", got, err)
	}
}

func mustParse(t testing.TB, s string) Addr {
	t.Helper()
	a, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type lookup = func(ctx context.Context, network, host string) ([]netip.Addr, error)

// lookUpBy returns names that are looked up by a function, and of which nothing is known.
func lookUpBy(f lookup) *Names { return NewNames(NamesConfig{Lookup: f}) }

// resolve returns what a session gets of an upstream whose name is not known yet.
func (a Addr) resolve(ctx context.Context, lookup lookup, offset int, datagrams bool) ([]net.Addr, error) {
	u := Upstream{Addr: a}
	u.fix()
	walk := &Walk{pool: &Pool{names: lookUpBy(lookup)}, LookupTimeout: time.Minute, Offset: offset, Datagrams: datagrams}
	addrs, _, err := walk.resolve(ctx, &u)
	return addrs, err
}

func noLookup(t testing.TB) lookup {
	return func(_ context.Context, _, host string) ([]netip.Addr, error) {
		t.Errorf("looked up %q", host)
		return nil, errors.New("no lookup")
	}
}

func spellings(addrs []net.Addr) []string {
	var all []string
	for _, addr := range addrs {
		all = append(all, addr.Network()+" "+addr.String())
	}
	return all
}

// A host that a placeholder was to fill in must be there; one that is left out on purpose is this machine.
func TestParseExpanded(t *testing.T) {
	t.Parallel()
	const refused = `":1": expected a host before the port`
	for _, c := range []struct{ name, expanded, err string }{
		{":1", ":1", ""},
		{"tcp/:1", "tcp/:1", ""},
		{":{x}", ":1", ""},
		{"{x}", ":1", ""},
		{"{x:a:2}", ":1", ""},
		{"{x}:1", "a:1", ""},
		{"unix/{x}:1", "unix/a:1", ""},
		{"{x}:1", ":1", refused},
		{"{x:}:{y}", ":1", refused},
		{"{x/y}:1", ":1", refused},
		{"tcp/{x}:1", "tcp/:1", `"tcp/:1": expected a host before the port`},
		{"{x}:{y}", "a:", `"a:": port "": expected a number from 1 to 65535`},
	} {
		got := ""
		if _, err := ParseExpanded(c.name, c.expanded); err != nil {
			got = err.Error()
		}
		if got != c.err {
			t.Errorf("%s as %s: %q, want %q", c.name, c.expanded, got, c.err)
		}
	}
}
