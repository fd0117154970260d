package session

import (
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

func TestSamples(t *testing.T) {
	t.Parallel()
	var sp sampler
	now := time.Now()
	denied := &End{Status: StatusDenied, Reason: ReasonDenied}
	for n := range samplesBurst {
		if skipped, ok := sp.take(denied, false, now); !ok || skipped != 0 {
			t.Fatalf("entry %d: %t, %d skipped", n, ok, skipped)
		}
	}
	for range 7 {
		if _, ok := sp.take(denied, false, now); ok {
			t.Fatal("an entry too many")
		}
	}
	for _, other := range []*End{{Status: StatusDenied, Reason: "list_changed"}, {Status: StatusNoUpstream, Reason: "connect_failed"}} {
		if skipped, ok := sp.take(other, false, now); !ok || skipped != 0 {
			t.Errorf("%+v: %t, %d skipped", other, ok, skipped)
		}
	}
	if skipped, ok := sp.take(denied, true, now); !ok || skipped != 0 {
		t.Errorf("one that was served: %t, %d skipped", ok, skipped)
	}
	now = now.Add(time.Second / samplesPerSecond)
	if skipped, ok := sp.take(denied, false, now); !ok || skipped != 7 {
		t.Errorf("after the pause: %t, %d skipped, want 7", ok, skipped)
	}
	if _, ok := sp.take(denied, false, now); ok {
		t.Error("two entries after a pause for one")
	}
	if n := takeMany(&sp, denied, false, now.Add(time.Hour)); n != samplesBurst {
		t.Errorf("%d entries after an hour, want %d", n, samplesBurst)
	}
}

// takeMany returns how many of very many entries there may be at a time.
func takeMany(sp *sampler, e *End, served bool, now time.Time) (n int) {
	for range 10_000 {
		if _, ok := sp.take(e, served, now); ok {
			n++
		}
	}
	return n
}

// What the config says of a status is for all of its sessions, whatever their reason.
func TestSamplesAsConfigured(t *testing.T) {
	t.Parallel()
	sp := sampler{perSecond: map[int]float64{StatusDone: 200, StatusDenied: 0.5, StatusNoUpstream: 0}}
	now := time.Now()
	if n := takeMany(&sp, &End{Status: StatusDone, Reason: "client_fin"}, true, now); n != 200 {
		t.Errorf("%d entries of sessions that were served, want 200", n)
	}
	if n := takeMany(&sp, &End{Status: StatusDone, Reason: "idle_timeout"}, true, now); n != 0 {
		t.Errorf("%d more for another reason", n)
	}
	if n := takeMany(&sp, &End{Status: StatusDone, Reason: "client_fin"}, true, now.Add(time.Second/2)); n != 100 {
		t.Errorf("%d entries in half a second, want 100", n)
	}
	denied := &End{Status: StatusDenied, Reason: ReasonDenied}
	if n := takeMany(&sp, denied, false, now); n != 1 {
		t.Errorf("%d entries at first, want 1", n)
	}
	if n := takeMany(&sp, denied, false, now.Add(time.Second)); n != 0 {
		t.Errorf("%d entries after half of the time for one", n)
	}
	if n := takeMany(&sp, denied, false, now.Add(2*time.Second)); n != 1 {
		t.Errorf("%d entries after the time for one", n)
	}
	if n := takeMany(&sp, &End{Status: StatusNoUpstream}, false, now); n != 0 {
		t.Errorf("%d entries of what there are to be none of", n)
	}
}

// A flood of forged datagrams, and clients of an upstream that is dead, write few entries. Sessions that were served are all written.
func TestEntriesOfFloods(t *testing.T) {
	t.Parallel()
	const sessions = 3 * samplesBurst
	for name, c := range map[string]struct {
		mover Mover
		end   End
		all   bool
	}{
		"refused":                     {newMover(), End{Status: StatusNoUpstream, Reason: "connect_failed"}, false},
		"timed out":                   {newMover(), End{Status: StatusConnectTimeout, Reason: "connect_timeout"}, false},
		"without anybody":             {nil, End{Status: StatusInternal}, false},
		"forged":                      {&datagrams{mover: newMover()}, End{Status: StatusDone, Reason: "evicted", Connected: true}, false},
		"served":                      {newMover(), End{Status: StatusDone, Reason: "client_fin", Connected: true}, true},
		"served and evicted":          {&datagrams{newMover(), 1}, End{Status: StatusDone, Reason: "evicted", Connected: true}, true},
		"served until a list changed": {newMover(), End{Status: StatusDone, Reason: ReasonListChanged, Connected: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sc, logs, _ := newScope(t, 0, 0)
			listener := newLabel()
			for range sessions {
				s := beginOn(t, sc, listener)
				if c.mover != nil {
					s.SetMover(c.mover)
				}
				s.SetUpstream("sampled:1", nil, nil)
				s.End(c.end)
			}
			// A machine may be so busy that the burst is not all.
			if n := logs.Len(); c.all && n != sessions || !c.all && (n < samplesBurst || n > 2*samplesBurst) {
				t.Errorf("%d entries of %d", n, sessions)
			}
		})
	}
}

// datagrams is a mover of datagrams.
type datagrams struct {
	*mover
	down int64
}

func (d *datagrams) Datagrams() (up, down int64)  { return 1, d.down }
func (d *datagrams) Counts() *listeners.Datagrams { return nil }
