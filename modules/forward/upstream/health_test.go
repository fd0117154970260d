package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// isDown is the slow and obvious verdict: it goes through the runs of equal results from the beginning.
func isDown(t Thresholds, history []bool) (down bool) {
	for len(history) > 0 {
		run := slices.Index(history, !history[0])
		if run < 0 {
			run = len(history)
		}
		switch passed := history[0]; {
		case !passed && run >= t.Fails:
			down = true
		case passed && run >= t.Passes:
			down = false
		}
		history = history[run:]
	}
	return down
}

func TestVerdictAgainstRuns(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		thresholds := Thresholds{Fails: 1 + random.IntN(4), Passes: 1 + random.IntN(4)}
		h := NewHealth(thresholds, Where{})
		c := h.Add(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:80")), false)
		var history []bool
		passes := random.Float64()
		for range 200 {
			var err error
			if random.Float64() > passes {
				err = errors.New("failed")
			}
			before := isDown(thresholds, history)
			history = append(history, err == nil)
			now, changed, _ := c.Note(err)
			want := isDown(thresholds, history)
			if now.Down != want || changed != (want != before) || h.quiet() == want || h.down(c.Addr) != want {
				t.Fatalf("seed %d, %+v, after %v: %+v, changed %v, want down %v", seed, thresholds, history, now, changed, want)
			}
		}
	}
}

func TestReportOfAnAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth(Thresholds{Fails: 2, Passes: 1}, Where{})
		c := h.Add(&net.UnixAddr{Net: "unix", Name: "/a"}, false)
		begin, failed := time.Now(), errors.New("failed")
		time.Sleep(time.Second)
		c.Note(failed)
		time.Sleep(time.Second)
		if now, changed, lasted := c.Note(failed); !changed || !now.Down || now.Fails != 2 || !now.Since.Equal(begin.Add(2*time.Second)) || !errors.Is(now.Err, failed) || lasted != 0 {
			t.Errorf("%+v, %v, %v", now, changed, lasted)
		}
		time.Sleep(time.Minute)
		if now, changed, lasted := c.Note(nil); !changed || now.Down || now.Fails != 0 || now.Err != nil || lasted != time.Minute {
			t.Errorf("%+v, %v, %v", now, changed, lasted)
		}
		if got, ok := h.Of(&net.UnixAddr{Net: "unix", Name: "/a"}); !ok || got.Down || !got.At.Equal(time.Now()) {
			t.Errorf("%+v, %v", got, ok)
		}
	})
}

// An address that is removed while it is down is not down for those who come to it by another way, and not counted.
func TestRemovedAddressIsNotDown(t *testing.T) {
	t.Parallel()
	h := NewHealth(Thresholds{Fails: 1, Passes: 1}, Where{})
	addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:80"))
	c := h.Add(addr, true)
	if !h.down(addr) {
		t.Error("known to be down, and up")
	}
	c.Remove()
	c.Note(nil)
	c.Note(errors.New("late"))
	if h.down(addr) || !h.quiet() {
		t.Error("removed, and down")
	}
}

func TestWhereAnUpstreamIsChecked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		where     Where
		addr      string
		ips       []string
		datagrams bool
		want      string
	}{
		{Where{}, "10.0.0.1:80", nil, false, "tcp 10.0.0.1:80"},
		{Where{}, "10.0.0.1:80", nil, true, "udp 10.0.0.1:80"},
		{Where{Network: "tcp"}, "10.0.0.1:80", nil, true, "tcp 10.0.0.1:80"},
		{Where{Port: 9, Network: "udp"}, "[::1]:80", nil, false, "udp [::1]:9"},
		{Where{}, "10.0.0.1:80-82", nil, false, "tcp 10.0.0.1:80, tcp 10.0.0.1:81, tcp 10.0.0.1:82"},
		{Where{Port: 9}, "10.0.0.1:80-82", nil, false, "tcp 10.0.0.1:9"},
		{Where{Port: 9}, "unix//run/a", nil, false, "unix /run/a"},
		{Where{}, "name:80", []string{"10.0.0.1", "10.0.0.2"}, false, "tcp 10.0.0.1:80, tcp 10.0.0.2:80"},
		{Where{}, "name:80", nil, false, ""},
	} {
		a, err := Parse(test.addr)
		if err != nil {
			t.Fatal(err)
		}
		var ips []netip.Addr
		for _, ip := range test.ips {
			ips = append(ips, netip.MustParseAddr(ip))
		}
		var got []string
		for _, target := range NewHealth(Thresholds{}, test.where).Targets(a, ips, test.datagrams) {
			got = append(got, target.Network()+" "+target.String())
		}
		if strings.Join(got, ", ") != test.want {
			t.Errorf("%+v, %s: %q, want %q", test.where, test.addr, got, test.want)
		}
	}
}

// What a check of one port tells holds for all addresses that sessions go to in its place.
func TestAddressesThatACheckIsFor(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		where    Where
		upstream string
		target   net.Addr
		want     string
	}{
		{Where{}, "10.0.0.1:80", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:80")), "tcp 10.0.0.1:80"},
		{
			Where{Port: 9, Network: "tcp"},
			"10.0.0.1:80-81", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:9")),
			"tcp 10.0.0.1:80, udp 10.0.0.1:80, tcp 10.0.0.1:81, udp 10.0.0.1:81",
		},
		{Where{Network: "tcp"}, "udp/name:53", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:53")), "udp 10.0.0.1:53"},
		{Where{}, "unix//a", &net.UnixAddr{Net: "unix", Name: "/a"}, "unix /a"},
	} {
		a, err := Parse(test.upstream)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, addr := range NewHealth(Thresholds{}, test.where).CheckedBy(test.target, a) {
			got = append(got, addr.Network()+" "+addr.String())
		}
		if strings.Join(got, ", ") != test.want {
			t.Errorf("%+v, %s: %q, want %q", test.where, test.upstream, got, test.want)
		}
	}
}

// checkedPool has upstreams at 10.0.0.1 and so on, and a name with the addresses 10.1.0.1 and 10.1.0.2.
func checkedPool(t *testing.T, remember bool) (p *Pool, note func(ip string, err error)) {
	t.Helper()
	var upstreams []Upstream
	for _, s := range []string{"10.0.0.1:80", "10.0.0.2:80", "name:80"} {
		a, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		upstreams = append(upstreams, Upstream{Name: s, Addr: a})
	}
	p = NewPool(upstreams)
	p.Health = NewHealth(Thresholds{Fails: 1, Passes: 1}, Where{Port: 9})
	if remember {
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Minute}, time.Now, nil)
	}
	p.Hold(NewNames(NamesConfig{Lookup: func(context.Context, string, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")}, nil
	}}))
	t.Cleanup(p.Release)
	checked := make(map[string]*Checked)
	for _, ip := range []string{"10.0.0.1", "10.0.0.2", "10.1.0.1", "10.1.0.2"} {
		checked[ip] = p.Health.Add(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 9)), false)
	}
	return p, func(ip string, err error) { checked[ip].Note(err) }
}

// order is in which order a session tries addresses.
func order(p *Pool) (order []string, allOut bool) {
	w := p.Walk()
	w.Retries, w.LookupTimeout, w.Stale = 10, time.Minute, time.Hour
	for err := error(nil); ; err = errors.New("failed") {
		addr, done := w.Next(context.Background(), err)
		if done != nil {
			return order, w.AllOut()
		}
		host, _, _ := net.SplitHostPort(addr.String())
		order = append(order, host)
	}
}

func TestAddressesThatAreDownAreTriedLast(t *testing.T) {
	t.Parallel()
	for _, remember := range []bool{false, true} {
		t.Run(fmt.Sprint("failures ", remember), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p, note := checkedPool(t, remember)
				failed := errors.New("failed")
				synctest.Wait()
				note("10.0.0.1", failed)
				note("10.1.0.2", failed)
				for range 6 {
					got, allOut := order(p)
					last := got[len(got)-2:]
					slices.Sort(last)
					if len(got) != 4 || allOut || !slices.Equal(last, []string{"10.0.0.1", "10.1.0.2"}) {
						t.Errorf("%q, all out %v", got, allOut)
					}
				}
				note("10.0.0.2", failed)
				if got, allOut := order(p); got[0] != "10.1.0.1" || allOut {
					t.Errorf("one address left: %q, %v", got, allOut)
				}
				note("10.1.0.1", failed)
				if got, allOut := order(p); len(got) != 4 || !allOut {
					t.Errorf("all are down: %q, %v", got, allOut)
				}
				note("10.0.0.1", nil)
				for range 4 {
					if got, allOut := order(p); got[0] != "10.0.0.1" || allOut {
						t.Errorf("one is back: %q, %v", got, allOut)
					}
				}
				for _, ip := range []string{"10.0.0.2", "10.1.0.1", "10.1.0.2"} {
					note(ip, nil)
				}
				first := make(map[string]bool)
				for range 6 {
					got, _ := order(p)
					first[got[0]] = true
				}
				if len(first) != 3 {
					t.Errorf("all are back: %v", first)
				}
			})
		})
	}
}

// An address that is both out for failures and down is in only when neither is so.
func TestFailuresAndChecksTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, note := checkedPool(t, true)
		synctest.Wait()
		one := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:80"))
		isFirst := func() bool {
			for range 6 {
				if got, _ := order(p); got[0] == "10.0.0.1" {
					return true
				}
			}
			return false
		}
		note("10.0.0.1", errors.New("failed"))
		p.Failures.Failed("10.0.0.1:80", one, errors.New("failed"))
		if isFirst() {
			t.Error("out and down, and tried first")
		}
		time.Sleep(2 * time.Minute) // no session is spent on trying it while it is down
		if isFirst() {
			t.Error("down, and tried first")
		}
		note("10.0.0.1", nil)
		if !isFirst() {
			t.Error("its time is over and it is up, and no session tries it")
		}
	})
}

func TestPickCostsNothingWhileUpstreamsAreDown(t *testing.T) {
	p, note := checkedPool(t, false)
	note("10.0.0.1", errors.New("failed"))
	s := situation{}
	p.viewFor(s)
	if n := testing.AllocsPerRun(100, func() { p.viewFor(s) }); n > 0.5 {
		t.Errorf("%v allocations", n)
	}
}

// A bound on ejection is for sessions that fail. What checks have found down is out however many that are.
func TestEjectionLeavesChecksAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, note := checkedPool(t, true)
		p.MaxEjected = 0.1 // of three, none
		synctest.Wait()
		failed := errors.New("failed")
		note("10.0.0.1", failed)
		note("10.0.0.2", failed)
		firsts := func() (first []string) {
			for range 12 {
				got, allOut := order(p)
				if allOut {
					t.Errorf("all are out: %q", got)
				}
				if !slices.Contains(first, got[0]) {
					first = append(first, got[0])
				}
			}
			slices.Sort(first)
			return first
		}
		if got := firsts(); !slices.Equal(got, []string{"10.1.0.1"}) {
			t.Errorf("tried first: %q", got)
		}
		// The last one that checks find up is not ejected for sessions that fail, whatever may be.
		p.MaxEjected = 1
		for _, ip := range []string{"10.1.0.1", "10.1.0.2"} {
			p.Failures.Failed("name:80", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 80)), failed)
		}
		if got := firsts(); !slices.Equal(got, []string{"10.1.0.1"}) {
			t.Errorf("tried first, where sessions to it fail: %q", got)
		}
		note("10.0.0.2", nil)
		if got := firsts(); !slices.Equal(got, []string{"10.0.0.2"}) {
			t.Errorf("tried first, when another is back: %q", got)
		}
	})
}
