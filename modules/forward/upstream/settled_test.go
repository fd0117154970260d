package upstream

import (
	"errors"
	"net"
	"testing"
)

// A session that has its upstream may forget its walk: one that resumes there goes on as the first one does.
func TestResumedWalkGoesOnAsTheFirst(t *testing.T) {
	t.Parallel()
	upstreams := func() []Upstream {
		return []Upstream{
			{Name: "a", Addr: mustParse(t, "udp/127.0.0.1:1")},
			{Name: "b", Addr: mustParse(t, "udp/127.0.0.1:2"), Weight: 2},
			{Name: "c", Addr: mustParse(t, "udp/127.0.0.1:3")},
			{Name: "d", Addr: mustParse(t, "udp/127.0.0.1:4"), Priority: 1},
		}
	}
	for turn := range 8 {
		kept, forgotten := NewPool(upstreams()), NewPool(upstreams())
		begin := func(p *Pool) *Walk {
			w := p.Walk()
			w.Retries, w.Datagrams = 5, true
			return w
		}
		for range turn { // so that each is the first one once
			for _, p := range []*Pool{kept, forgotten} {
				_, _ = begin(p).Next(t.Context(), nil)
			}
		}
		w, first := begin(kept), begin(forgotten)
		if w.Settled() {
			t.Error("settled before it has begun")
		}
		a, _ := w.Next(t.Context(), nil)
		b, _ := first.Next(t.Context(), nil)
		if a.String() != b.String() || !first.Settled() {
			t.Fatalf("%v and %v, settled: %t", a, b, first.Settled())
		}
		resumed := begin(forgotten)
		resumed.Resume(first.Position())
		if name, addr := resumed.Current(); addr.String() != b.String() || name != []string{"a", "b", "c", "d"}[first.Position()] || !resumed.Settled() {
			t.Errorf("resumed at %s, %v", name, addr)
		}
		for {
			a, errA := w.Next(t.Context(), net.ErrClosed)
			b, errB := resumed.Next(t.Context(), net.ErrClosed)
			if (errA == nil) != (errB == nil) || errA == nil && a.String() != b.String() {
				t.Errorf("turn %d: %v, %v and %v, %v", turn, a, errA, b, errB)
			}
			if resumed.Settled() {
				t.Error("settled after a failure")
			}
			if errA != nil || errB != nil {
				if !errors.Is(errB, net.ErrClosed) {
					t.Error(errB)
				}
				break
			}
		}
	}
}
