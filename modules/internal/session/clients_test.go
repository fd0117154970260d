package session

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/recheck"
)

// admitted begins a session of a client, which admissions have judged by these addresses.
func admitted(t testing.TB, sc *Scope, client string, judged ...string) *Session {
	t.Helper()
	a := &Arrival{Network: "tcp", Listener: newLabel()}
	if client != "" {
		a.Client = netip.MustParseAddrPort(client)
	}
	for _, addr := range judged {
		a.Admit(recheck.Pass{Admission: new(recheck.Admission), Client: netip.MustParseAddr(addr)})
	}
	return a.Begin(sc)
}

func found(prefix string, s *Session) bool {
	n := 0
	EachLivingOf(netip.MustParsePrefix(prefix), func(other *Session) {
		if other == s {
			n++
		}
	})
	return n > 0
}

// A session is found by its client, by what admissions have judged, and by every prefix around them; and not after its end.
func TestSessionsAreFoundByTheirClients(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	behindProxy := admitted(t, sc, "10.9.0.1:7", "203.0.113.7", "::ffff:203.0.113.7")
	six := admitted(t, sc, "[fe80::9%eth0]:7", "fe80::9%eth0")
	plain := admitted(t, sc, "10.9.0.1:8")
	unix := admitted(t, sc, "")
	for _, c := range []struct {
		prefix string
		s      *Session
		want   bool
	}{
		{"10.9.0.1/32", behindProxy, true},
		{"203.0.113.7/32", behindProxy, true},
		{"203.0.113.0/24", behindProxy, true},
		{"0.0.0.0/0", behindProxy, true},
		{"203.0.113.8/32", behindProxy, false},
		{"::/0", behindProxy, false},
		{"fe80::9/128", six, true},
		{"fe80::/10", six, true},
		{"fe80::8/128", six, false},
		{"10.9.0.1/32", plain, false},
		{"0.0.0.0/0", unix, false},
	} {
		if got := found(c.prefix, c.s); got != c.want {
			t.Errorf("%s: %t, want %t (%v)", c.prefix, got, c.want, c.s.Client)
		}
	}
	plain.Index()
	plain.Index()
	if !found("10.9.0.1/32", plain) {
		t.Error("not found though it was asked for")
	}
	for _, s := range []*Session{behindProxy, six, plain, unix} {
		s.End(End{})
		s.Index() // too late
		if found("0.0.0.0/0", s) || found("::/0", s) {
			t.Errorf("found after its end: %v", s.Client)
		}
	}
}

// A session that begins when its config is not the running one any more is found: the config that is may deny it.
func TestSessionsOfAReplacedConfigAreFound(t *testing.T) {
	t.Parallel()
	sc, _, unload := newScope(t, 0, 0)
	unload()
	s := admitted(t, sc, "10.9.0.2:7")
	defer s.End(End{})
	if !found("10.9.0.2/32", s) {
		t.Error("not found")
	}
}

// The index agrees with a look at all sessions, whatever begins and ends.
func TestIndexOfClientsAgreesWithAWalk(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	random := rand.New(rand.NewPCG(1, 2))
	var x clientIndex
	alive := make(map[*Session]bool)
	for range 3000 {
		if len(alive) > 0 && random.IntN(3) == 0 {
			for s := range alive {
				x.remove(s)
				x.remove(s)
				delete(alive, s)
				break
			}
			continue
		}
		client := netip.AddrFrom4([4]byte{10, byte(random.IntN(2)), byte(random.IntN(3)), byte(random.IntN(5))})
		s := &Session{scope: sc, Client: netip.AddrPortFrom(client, 1)}
		x.add(s)
		x.add(s)
		alive[s] = true
		prefix, _ := client.Prefix(8 + random.IntN(25))
		got := make(map[*Session]bool)
		for _, s := range x.appendTo(nil, prefix) {
			if got[s] {
				t.Fatalf("%v: twice", s.Client)
			}
			got[s] = true
		}
		for s := range alive {
			if prefix.Contains(s.Client.Addr()) != got[s] {
				t.Fatalf("%v in %v: %t", s.Client, prefix, got[s])
			}
		}
	}
	for s := range alive {
		x.remove(s)
	}
	if n := x.table.Size(); n != 0 {
		t.Errorf("%d addresses are left", n)
	}
}

// What it costs that a session begins and ends: without and with an admission.
func BenchmarkBeginAndEnd(b *testing.B) {
	sc, _, _ := newScope(b, 0, 0)
	for i := range 20_000 {
		admitted(b, sc, fmt.Sprintf("10.%d.%d.1:1", i>>8, i&255), fmt.Sprintf("10.%d.%d.1", i>>8, i&255))
	}
	for name, passes := range map[string][]recheck.Pass{
		"plain": nil, "admitted": {{Admission: new(recheck.Admission), Client: netip.MustParseAddr("192.0.2.1")}},
	} {
		b.Run(name, func(b *testing.B) {
			a := &Arrival{Network: "tcp", Listener: "bench:1", Client: netip.MustParseAddrPort("192.0.2.1:1"), passes: passes}
			b.ReportAllocs()
			for b.Loop() {
				s := newSession(sc, a)
				living.remove(s)
			}
		})
	}
}
