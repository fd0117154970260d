package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// fake is an engine whose exchanges a test ends.
type fake struct {
	mu        sync.Mutex
	begun     []begun
	open      map[*exchange]struct{}
	most      int // at the same time
	cancelled int
	answer    func(x *exchange) (ok bool, err error) // at once; nil: never
}

type begun struct {
	addr string
	at   time.Time
}

func (f *fake) serves(*exchange) bool { return true }

func (f *fake) begin(all ...*exchange) {
	for _, x := range all {
		f.beginOne(x)
	}
}

func (f *fake) beginOne(x *exchange) {
	f.mu.Lock()
	f.begun = append(f.begun, begun{x.addr.String(), time.Now()})
	if f.open == nil {
		f.open = make(map[*exchange]struct{})
	}
	f.open[x] = struct{}{}
	f.most = max(f.most, len(f.open))
	f.mu.Unlock()
	if f.answer != nil {
		if ok, err := f.answer(x); ok {
			f.end(x, err)
		}
	}
}

func (f *fake) end(x *exchange, err error) {
	f.mu.Lock()
	_, open := f.open[x]
	delete(f.open, x)
	f.mu.Unlock()
	if open {
		x.over(err)
	}
}

func (f *fake) cancel(x *exchange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, open := f.open[x]; open {
		f.cancelled++
		delete(f.open, x)
	}
}

func (f *fake) close() {}

// times returns when the checks of an address began.
func (f *fake) times(addr string) (all []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.begun {
		if b.addr == addr {
			all = append(all, b.at)
		}
	}
	return all
}

// counts returns how many exchanges there were at the same time, and how many were cancelled.
func (f *fake) counts() (most, cancelled int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most, f.cancelled
}

func passes(*exchange) (bool, error) { return true, nil }

// results keeps what a group tells.
type results struct {
	mu  sync.Mutex
	all []Result
}

func (r *results) tell(result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, result)
}

func (r *results) take() []Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

func group(t *testing.T, c *Checker, spec Spec) (*Group, *results) {
	t.Helper()
	if spec.Kind == "" {
		spec.Kind = TCP
	}
	if spec.Interval == 0 {
		spec.Interval, spec.Timeout, spec.Fails, spec.Passes = 5*time.Second, 2*time.Second, 3, 2
	}
	var r results
	g, err := NewGroup(c, spec, nil, r.tell)
	if err != nil {
		t.Fatal(err)
	}
	return g, &r
}

func wanted(t *testing.T, name string) Wanted {
	t.Helper()
	addr, err := upstream.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return Wanted{Name: name, Addr: addr, Stale: time.Hour}
}

// bubble runs a test with a checker whose time is the bubble's.
func bubble(t *testing.T, limit int, f *fake, test func(t *testing.T, c *Checker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newChecker(limit, f)
		defer c.Close()
		test(t, c)
	})
}

func TestChecksAreSpread(t *testing.T) {
	t.Parallel()
	f := &fake{answer: passes}
	bubble(t, 1000, f, func(t *testing.T, c *Checker) {
		g, _ := group(t, c, Spec{})
		begin := time.Now()
		for i := range 100 {
			g.Hold(wanted(t, fmt.Sprintf("10.0.0.%d:80", i)))
		}
		time.Sleep(60*time.Second + time.Millisecond)
		var tenths [50]int
		for i := range 100 {
			all := f.times(fmt.Sprintf("10.0.0.%d:80", i))
			if all[0].Sub(begin) >= 5*time.Second {
				t.Errorf("the first check of %d after %s", i, all[0].Sub(begin))
			}
			tenths[all[0].Sub(begin)/(100*time.Millisecond)]++
			if len(all) < 10 || len(all) > 14 {
				t.Errorf("%d checks of %d in a minute", len(all), i)
			}
			for k := 1; k < len(all); k++ {
				if d := all[k].Sub(all[k-1]); d < 4500*time.Millisecond || d > 5500*time.Millisecond+2*tick {
					t.Errorf("the next check of %d after %s", i, d)
				}
			}
		}
		for i, n := range tenths {
			if n > 4 {
				t.Errorf("%d first checks in the %d. tenth of a second", n, i)
			}
		}
		if first := f.times("10.0.0.0:80")[0].Sub(begin); first > 2*tick {
			t.Errorf("the first one of all after %s", first)
		}
	})
}

func TestChecksInTime(t *testing.T) {
	t.Parallel()
	f := new(fake)
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, told := group(t, c, Spec{})
		begin := time.Now()
		g.Hold(wanted(t, "10.0.0.1:80"))
		for len(told.take()) == 0 {
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(begin); d < 2*time.Second || d > 2*time.Second+3*tick {
			t.Errorf("given up after %s", d)
		}
		time.Sleep(20 * time.Second)
		all := told.take()
		if len(all) < 2 || all[0].Outcome != Failed || !contains(all[0].Err, "no answer within 2s") || all[0].Upstream != "10.0.0.1:80" {
			t.Errorf("%+v", all)
		}
		changes := 0
		for _, r := range all {
			if r.Changed {
				changes++
			}
		}
		most, cancelled := f.counts()
		if changes != 1 || !all[1].Changed || !all[1].Report.Down || all[1].Report.Fails != 3 || most != 1 || cancelled < 3 {
			t.Errorf("%d changes, %d at a time, %d cancelled: %+v", changes, most, cancelled, all)
		}
	})
}

// A server that answers something else and then waits has not been silent.
func TestResultOfAnUnfinishedReply(t *testing.T) {
	t.Parallel()
	f := &fake{answer: func(x *exchange) (bool, error) { return x.judge([]byte("-NOAUTH\r\n"), false) }}
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, told := group(t, c, Spec{Probe: Probe{Kind: Send, Text: `PING\r\n`, Expect: `^\+PONG`}})
		g.Hold(wanted(t, "10.0.0.1:80"))
		time.Sleep(20 * time.Second)
		if all := told.take(); len(all) == 0 || all[0].Outcome != Failed || !contains(all[0].Err, `it has sent "-NOAUTH\r\n"`) {
			t.Errorf("%+v", all)
		}
	})
}

// No answer is one where only a refusal fails.
func TestSilenceThatPasses(t *testing.T) {
	t.Parallel()
	f := new(fake)
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, told := group(t, c, Spec{Probe: Probe{Kind: UDP, Text: "00"}})
		g.Hold(wanted(t, "10.0.0.1:80"))
		time.Sleep(3 * time.Second)
		if all := told.take(); len(all) != 1 || all[0].Outcome != Passed || all[0].Addr.Network() != "udp" {
			t.Errorf("%+v", all)
		}
	})
}

// What this system could not do says nothing about an upstream.
func TestChecksThatCouldNotBeMade(t *testing.T) {
	t.Parallel()
	f := &fake{answer: func(*exchange) (bool, error) { return true, errNoDescriptors }}
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, told := group(t, c, Spec{})
		g.Hold(wanted(t, "10.0.0.1:80"))
		time.Sleep(time.Minute)
		all := told.take()
		if len(all) < 10 {
			t.Errorf("%d checks", len(all))
		}
		for _, r := range all {
			if r.Outcome != NotMade || r.Changed || r.Report.Down || r.Report.Fails != 0 {
				t.Errorf("%+v", r)
			}
		}
	})
}

func TestChecksUnderWayAreBounded(t *testing.T) {
	t.Parallel()
	f := new(fake) // nobody answers
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, told := group(t, c, Spec{})
		var held []*Held
		for i := range 100 {
			held = append(held, g.Hold(wanted(t, fmt.Sprintf("10.0.0.%d:80", i))))
		}
		time.Sleep(100 * time.Second)
		seen := make(map[string]int)
		for _, r := range told.take() {
			seen[r.Upstream]++
		}
		if most, _ := f.counts(); most != 10 || len(seen) != 100 { // 10 in 2 s: 4 or 5 of each in this time
			t.Errorf("%d at the same time, %d of 100 checked", most, len(seen))
		}
		for name, n := range seen {
			if n < 3 || n > 6 {
				t.Errorf("%s: %d checks", name, n)
			}
		}
		for _, h := range held[1:] {
			h.Release()
		}
		told.take()
		time.Sleep(30 * time.Second)
		if n := len(told.take()); n < 5 {
			t.Errorf("%d checks of the one that is left", n)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.busy > 1 || len(c.held) > 0 || len(c.queue) > 1 {
			t.Errorf("%d busy, %d held, %d in the queue", c.busy, len(c.held), len(c.queue))
		}
	})
}

// Two handlers are one check; what one of them knows stays when the other goes.
func TestOneCheckForAllWhoHoldIt(t *testing.T) {
	t.Parallel()
	f := &fake{answer: func(*exchange) (bool, error) { return true, errors.New("failed") }}
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, told := group(t, c, Spec{})
		first := g.Hold(wanted(t, "10.0.0.1:80"))
		time.Sleep(7 * time.Second)
		second := g.Hold(wanted(t, "10.0.0.1:80"))
		first.Release()
		time.Sleep(5 * time.Second)
		if n := len(f.times("10.0.0.1:80")); n != 3 {
			t.Errorf("%d checks in 12 s", n)
		}
		all := told.take()
		if last := all[len(all)-1]; !last.Changed || !last.Report.Down {
			t.Errorf("after three checks: %+v", last)
		}
		up := true
		g.Each(func(_ string, is bool) { up = is })
		if up {
			t.Error("it is down, and shown as up")
		}
		second.Release()
		time.Sleep(time.Minute)
		if n := len(f.times("10.0.0.1:80")); n != 3 {
			t.Errorf("%d checks in all, nobody holds it", n)
		}
		w := wanted(t, "10.0.0.1:80")
		w.Down = func(net.Addr) bool { return true }
		third := g.Hold(w)
		g.Each(func(_ string, is bool) { up = is })
		if up {
			t.Error("it was known to be down")
		}
		third.Release()
	})
}

// What a name stands for is checked, as that changes; where it can't be looked up, what it was.
func TestChecksFollowNames(t *testing.T) {
	t.Parallel()
	f := &fake{answer: passes}
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		var mu sync.Mutex
		answers, failed := []netip.Addr{netip.MustParseAddr("10.0.0.1")}, error(nil)
		names := upstream.NewNames(upstream.NamesConfig{Lookup: func(context.Context, string, string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(answers), failed
		}})
		addr, _ := upstream.Parse("name:80")
		pool := upstream.NewPool([]upstream.Upstream{{Name: "name:80", Addr: addr}})
		pool.Hold(names)
		defer pool.Release()
		g, _ := group(t, c, Spec{})
		held := g.Hold(Wanted{Name: "name:80", Addr: addr, Names: names, Stale: time.Hour})
		since := func(d time.Duration) string {
			f.mu.Lock()
			from := len(f.begun)
			f.mu.Unlock()
			time.Sleep(d)
			f.mu.Lock()
			defer f.mu.Unlock()
			var addrs []string
			for _, b := range f.begun[from:] {
				if !slices.Contains(addrs, b.addr) {
					addrs = append(addrs, b.addr)
				}
			}
			slices.Sort(addrs)
			return strings.Join(addrs, " ")
		}
		if got := since(20 * time.Second); got != "10.0.0.1:80" {
			t.Errorf("at first %q", got)
		}
		mu.Lock()
		answers = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}
		mu.Unlock()
		time.Sleep(20 * time.Second)
		if got := since(20 * time.Second); got != "10.0.0.2:80 10.0.0.3:80" {
			t.Errorf("after a change %q", got)
		}
		mu.Lock()
		failed = errors.New("no name server")
		mu.Unlock()
		time.Sleep(20 * time.Second)
		if got := since(20 * time.Second); got != "10.0.0.2:80 10.0.0.3:80" {
			t.Errorf("without a name server %q", got)
		}
		held.Release()
		if got := since(20 * time.Second); got != "" {
			t.Errorf("after all %q", got)
		}
		time.Sleep(time.Minute) // lookups end
	})
}

// A check that ends before its time limit does not hold up the next one.
func TestShortIntervals(t *testing.T) {
	t.Parallel()
	f := &fake{answer: passes}
	bubble(t, 10, f, func(t *testing.T, c *Checker) {
		g, _ := group(t, c, Spec{Interval: 200 * time.Millisecond, Timeout: 200 * time.Millisecond, Thresholds: upstream.Thresholds{Fails: 1, Passes: 1}})
		g.Hold(wanted(t, "10.0.0.1:80"))
		time.Sleep(10 * time.Second)
		if n := len(f.times("10.0.0.1:80")); n < 45 || n > 55 {
			t.Errorf("%d checks in 10 s", n)
		}
	})
}

// Whatever handlers hold and release while checks are under way, each check has one result at most, and nothing stays.
func TestHoldAndReleaseUnderChecks(t *testing.T) {
	t.Parallel()
	open := server(t, "tcp", func(net.Conn) {})
	shut := closed(t, "tcp")
	c := NewChecker(4)
	g, told := group(t, c, Spec{Interval: 10 * time.Millisecond, Timeout: 10 * time.Millisecond, Thresholds: upstream.Thresholds{Fails: 1, Passes: 1}})
	var wg sync.WaitGroup
	for _, addr := range []string{open.String(), shut.String(), open.String(), shut.String()} {
		w := wanted(t, addr)
		wg.Go(func() {
			for range 200 {
				h := g.Hold(w)
				time.Sleep(time.Millisecond)
				h.Release()
			}
		})
	}
	wg.Wait()
	c.Close()
	if len(told.take()) == 0 {
		t.Error("no check has come to a result")
	}
	if len(g.held) > 0 || len(g.targets) > 0 || len(c.queue) > 0 || c.busy != 0 {
		t.Errorf("%d held, %d targets, %d tasks, %d busy", len(g.held), len(g.targets), len(c.queue), c.busy)
	}
}

var errNoDescriptors = &net.OpError{Op: "dial", Err: syscall.EMFILE}
