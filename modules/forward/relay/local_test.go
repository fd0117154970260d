package relay

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func addrs(ips ...string) (all []netip.Addr) {
	for _, ip := range ips {
		all = append(all, netip.MustParseAddr(ip))
	}
	return all
}

// Source addresses of the upstream's family are used in turn, and the next one where one can't be used.
func TestSourcesInTurn(t *testing.T) {
	t.Parallel()
	var told []*LocalError
	l := NewLocal(addrs("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.2"), func(e *LocalError) { told = append(told, e) })
	four, six := &net.UDPAddr{IP: net.IP{198, 51, 100, 1}}, &net.TCPAddr{IP: net.ParseIP("2001:db8::9")}
	try := func(to net.Addr, fails map[string]error) (tried []string, err error) {
		told = nil
		err = l.connect(to, func(source netip.Addr) error {
			tried = append(tried, source.String())
			return fails[source.String()]
		})
		return tried, err
	}
	seen := map[string]int{}
	for range 10 {
		tried, err := try(four, nil)
		if len(tried) != 1 || err != nil {
			t.Fatalf("tried %v, %v", tried, err)
		}
		seen[tried[0]]++
	}
	if seen["192.0.2.1"] != 5 || seen["192.0.2.2"] != 5 {
		t.Errorf("used: %v", seen)
	}
	if tried, _ := try(six, nil); !slices.Equal(tried, []string{"2001:db8::1"}) {
		t.Errorf("for IPv6: %v", tried)
	}
	gone := localError("bind", syscall.EADDRNOTAVAIL, true, netip.MustParseAddr("192.0.2.1"))
	full := localError("bind", syscall.EADDRINUSE, true, netip.MustParseAddr("192.0.2.2"))
	for range 2 {
		if tried, err := try(four, map[string]error{"192.0.2.1": gone}); err != nil || tried[len(tried)-1] != "192.0.2.2" || len(told) != len(tried)-1 {
			t.Errorf("where one is gone: tried %v, %v, told %v", tried, err, told)
		}
		if _, err := try(four, map[string]error{"192.0.2.2": full}); err != nil || len(told) != 0 {
			t.Errorf("where one has no port: %v, told %v", err, told)
		}
	}
	if _, err := try(four, map[string]error{"192.0.2.1": full, "192.0.2.2": full}); !isNoPort(err) || len(told) != 1 || !isOurs(err) {
		t.Errorf("where none has a port: %v, told %v", err, told)
	}
	if tried, err := try(four, map[string]error{"192.0.2.1": syscall.ENETUNREACH, "192.0.2.2": syscall.ENETUNREACH}); len(tried) != 1 || !errors.Is(err, syscall.ENETUNREACH) || len(told) != 0 {
		t.Errorf("where the upstream can't be reached: tried %v, %v, told %v", tried, err, told)
	}
	l = NewLocal(addrs("192.0.2.1"), nil)
	if tried, err := try(six, nil); len(tried) != 0 || !errors.Is(err, errNoSource) || !isOurs(err) {
		t.Errorf("of the other family: tried %v, %v", tried, err)
	}
	for _, l = range []*Local{nil, NewLocal(nil, nil)} {
		if tried, err := try(four, nil); !slices.Equal(tried, []string{"invalid IP"}) || err != nil {
			t.Errorf("without sources: tried %v, %v", tried, err)
		}
	}
	l = NewLocal(addrs("192.0.2.1"), nil)
	if tried, _ := try(&net.UnixAddr{Net: "unix", Name: "/s"}, nil); !slices.Equal(tried, []string{"invalid IP"}) {
		t.Errorf("for a unix socket: tried %v", tried)
	}
}

func TestLocalErrors(t *testing.T) {
	t.Parallel()
	source := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		call      string
		errno     syscall.Errno
		datagrams bool
		local     bool
		contains  string
	}{
		{"connect", syscall.EAGAIN, true, true, "net.ipv4.ip_local_port_range is used up"},
		{"connect", syscall.EADDRNOTAVAIL, false, true, "net.ipv4.ip_local_port_range is used up"},
		{"bind", syscall.EADDRINUSE, true, true, `from source "192.0.2.1", net.ipv4.ip_local_port_range`},
		{"bind", syscall.EADDRNOTAVAIL, false, true, `can't connect from source "192.0.2.1": bind: cannot assign`},
		{"connect", syscall.EAGAIN, false, false, ""},
		{"connect", syscall.EADDRNOTAVAIL, true, false, ""},
		{"connect", syscall.ECONNREFUSED, false, false, ""},
		{"socket", syscall.EMFILE, true, false, ""},
	} {
		err := localError(c.call, c.errno, c.datagrams, source)
		var local *LocalError
		if got := errors.As(err, &local); got != c.local || !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.contains) {
			t.Errorf("%s %v: got %v", c.call, c.errno, err)
		}
	}
}

// Who waits longest gets the first port that is free, and nobody has to look in vain.
func TestPortQueue(t *testing.T) {
	t.Parallel()
	var q portQueue
	var woken []int
	wait := func(i int) *portWaiter { return q.add(func() { woken = append(woken, i) }) }
	q.freed()
	first, second := wait(1), wait(2)
	wait(3)
	if !q.remove(second) || q.remove(second) {
		t.Error("removed twice, or not at all")
	}
	for range 3 {
		q.freed()
	}
	if !slices.Equal(woken, []int{1, 3}) || q.remove(first) || q.waits.Load() != 0 {
		t.Errorf("woken: %v", woken)
	}
	if q.areOut() {
		t.Error("out of ports before anybody has said so")
	}
	q.noteOut()
	if began := time.Now(); !q.areOut() && time.Since(began) < portPause {
		t.Error("there is no port, and nobody knows")
	}
	q.freed()
	if q.areOut() {
		t.Error("a port is free, and nobody knows")
	}
}
