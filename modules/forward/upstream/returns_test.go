package upstream

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// slowly is a pool whose upstreams start slowly, within 100 s.
func slowly(t testing.TB, method string, weights ...int) *Pool {
	t.Helper()
	p := poolOf(t, method, weights...)
	p.SlowStart, p.Returns = 100*time.Second, NewReturns(time.Now)
	t.Cleanup(p.Returns.Hold(p.SlowStart))
	return p
}

// shares are the percentages of sessions that upstreams get. Sessions last as long as it takes to count them.
func (p *Pool) shares() (percent []int) {
	const sessions = 10_000
	counts := make([]int, len(p.upstreams))
	for range sessions {
		i := p.pickAny()
		counts[i]++
		p.upstreams[i].Living.Add(1)
	}
	for i, n := range counts {
		p.upstreams[i].Living.Store(0)
		percent = append(percent, (n*100+sessions/2)/sessions)
	}
	return percent
}

// An upstream that comes back has a tenth of its share, and more from step to step.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	for method, ramps := range map[string]bool{
		"round_robin": true, "least_conn": true, "random": true, "random_choose 2": true, "ip_hash": false, "hash {x}": false, "first": false,
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := slowly(t, method, 1, 1)
				before := p.shares()
				p.Returns.Address(tcp(0))
				for _, step := range []struct {
					at   time.Duration
					want int // of 100 sessions
				}{
					{0, 9}, {50 * time.Second, 35}, {90 * time.Second, 48}, {100 * time.Second, 50}, {time.Hour, 50},
				} {
					time.Sleep(step.at - p.sinceReturn())
					want, within := step.want, 1
					if !ramps {
						want, within = before[0], 3
					}
					if got := p.shares()[0]; got < want-within || got > want+within {
						t.Errorf("after %v: %d %%, want %d", step.at, got, want)
					}
				}
				if !p.quiet() {
					t.Error("it is long over, and views are still made")
				}
			})
		})
	}
}

func (p *Pool) sinceReturn() time.Duration {
	for _, at := range p.Returns.addrs {
		return time.Since(at)
	}
	return 0
}

// Weights are respected while one of them grows, and afterwards: there is no burst.
func TestSlowStartWithWeights(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := slowly(t, "round_robin", 5, 3, 2)
		p.shares()
		p.Returns.Upstream(tcp(0).String())
		if got, want := p.shares(), []int{9, 55, 36}; !slices.Equal(got, want) {
			t.Errorf("at first %v, want %v", got, want)
		}
		time.Sleep(p.SlowStart)
		if got, want := p.picks(100), []int{50, 30, 20}; !slices.Equal(got, want) {
			t.Errorf("the next 100 sessions go to %v, want %v", got, want)
		}
	})
}

// Nothing grows at the start, where nobody asked when something came back, and while another address of the upstream was there all the time.
func TestNoSlowStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := slowly(t, "round_robin", 1, 1)
		if got := p.picks(10); !slices.Equal(got, []int{5, 5}) {
			t.Errorf("at the start: %v", got)
		}
		nobody := NewReturns(time.Now)
		nobody.Address(tcp(0))
		release := nobody.Hold(time.Minute)
		if p.Returns = nobody; !p.quiet() {
			t.Error("what came back before was remembered")
		}
		nobody.Address(tcp(0))
		if p.quiet() {
			t.Error("what came back was forgotten")
		}
		release()
		release()
		if !p.quiet() {
			t.Error("nobody asks any more, and it is remembered")
		}
	})
}

// An upstream with several addresses has the share of the best of those that are in.
func TestSlowStartOfNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}, {Name: "10.0.0.9:1", Addr: mustParse(t, "10.0.0.9:1")}})
		server := newNameServer("10.0.0.1", "10.0.0.2")
		p.Hold(server.names)
		defer p.Release()
		synctest.Wait()
		p.SlowStart, p.Returns = 100*time.Second, NewReturns(time.Now)
		defer p.Returns.Hold(p.SlowStart)()
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, func(c Change) {
			if !c.Out {
				p.Returns.Address(c.Addr)
			}
		})
		p.fail(1)
		p.Failures.Works(tcp(1))
		if got := p.shares(); !slices.Equal(got, []int{50, 50}) {
			t.Errorf("one of its addresses was there: %v", got)
		}
		p.fail(1, 2)
		p.Failures.Works(tcp(2))
		if got := p.shares(); !slices.Equal(got, []int{9, 91}) {
			t.Errorf("none of its addresses was there: %v", got)
		}
	})
}

// Views are made at a bounded rate while a share grows.
func TestSlowStartIsCheap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := slowly(t, "round_robin", slices.Repeat([]int{1}, 100)...)
		p.pickAny()
		p.Returns.Address(tcp(0))
		views := make(map[*view]bool)
		for range 10_000 {
			views[p.viewFor(situation{})] = true
			time.Sleep(p.SlowStart / 10_000)
		}
		if len(views) < rampSteps/2 || len(views) > rampSteps+1 {
			t.Errorf("%d views", len(views))
		}
	})
}

// The returns that are remembered are bounded.
func TestReturnsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewReturns(time.Now)
		defer r.Hold(time.Minute)()
		for i := range maxReturns {
			r.Upstream(fmt.Sprint(i))
			r.Address(tcp(i))
		}
		if n := int(r.count.Load()); n != maxReturns {
			t.Errorf("%d are remembered", n)
		}
		time.Sleep(time.Minute)
		r.Address(tcp(maxReturns))
		if n := int(r.count.Load()); n != 1 {
			t.Errorf("%d are remembered a minute later", n)
		}
	})
}
