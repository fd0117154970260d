package admin

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// traffic is counts of sessions of which the test says what they are.
type traffic struct {
	looks, begun, up, refused atomic.Int64
	lines                     []*session.Line
}

func (c *traffic) counting() counting {
	return counting{
		count: func(step func()) int { step(); c.looks.Add(1); return 3 },
		totals: func() session.Totals {
			return session.Totals{
				Begun: c.begun.Load(), BytesUp: c.up.Load(), BytesDown: 2 * c.up.Load(),
				Refused: map[string]int64{"denied": c.refused.Load(), "limited": 0},
			}
		},
		all: func() []*session.Line { return c.lines },
	}
}

// decoded is a history as a client reads it.
type decoded struct {
	Interval    int
	End         time.Time
	BytesUp     []*float64 `json:"bytes_up"`
	BytesDown   []*float64 `json:"bytes_down"`
	SessionsTCP []*float64 `json:"sessions_tcp"`
	SessionsUDP []*float64 `json:"sessions_udp"`
	NewSessions []*float64 `json:"new_sessions"`
	Refusals    map[string][]*float64
}

func decode(t testing.TB, a historyAnswer) (d decoded) {
	t.Helper()
	text, err := json.Marshal(a)
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, series := range [][]*float64{d.BytesUp, d.BytesDown, d.SessionsTCP, d.SessionsUDP, d.NewSessions} {
		if len(series) != points {
			t.Fatalf("%d points, want %d", len(series), points)
		}
	}
	return d
}

func (r *recorder) decoded(t testing.TB) decoded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return decode(t, r.history.answer(r.history.last))
}

// shown is the last points of a series, the newest last.
func shown(series []*float64, n int) string {
	text := ""
	for _, p := range series[len(series)-n:] {
		if p == nil {
			text += "- "
		} else {
			text += fmt.Sprintf("%g ", math.Round(*p))
		}
	}
	return text
}

// run has a recorder of counts, and a way to let time pass in which so many bytes a second move up.
func run(t *testing.T, c *traffic) (r *recorder, pass func(d time.Duration, perSecond int64)) {
	r = newRecorder(c.counting())
	t.Cleanup(func() { _ = r.Destruct() })
	return r, func(d time.Duration, perSecond int64) {
		for range int(d / (500 * time.Millisecond)) {
			time.Sleep(500 * time.Millisecond)
			c.up.Add(perSecond / 2)
			c.begun.Add(5)
		}
		synctest.Wait()
	}
}

// Points are at multiples of 5 seconds, whenever the process has begun. Bytes and new sessions are per second.
func TestHistory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &traffic{lines: []*session.Line{{Network: "tcp", Listener: ":1"}, {Network: "udp", Listener: ":1"}, {Network: "unix", Listener: "/run/s"}}}
		c.lines[0].Living.Store(7)
		c.lines[1].Living.Store(9)
		c.lines[2].Living.Store(1)
		time.Sleep(1700 * time.Millisecond)
		r, pass := run(t, c)
		pass(10*time.Second, 1000)
		c.refused.Add(20)
		pass(10*time.Second, 1000)
		d := r.decoded(t)
		for _, series := range []struct {
			name, want string
			got        []*float64
		}{
			{"bytes_up", "- - 909 1000 1000 1000 ", d.BytesUp}, // 6 steps in 3.3 seconds at first
			{"bytes_down", "- - 1818 2000 2000 2000 ", d.BytesDown},
			{"new_sessions", "- - 9 10 10 10 ", d.NewSessions},
			{"sessions_tcp", "- - 8 8 8 8 ", d.SessionsTCP},
			{"sessions_udp", "- - 9 9 9 9 ", d.SessionsUDP},
			{"refusals", "- - 0 0 4 0 ", d.Refusals["denied"]},
		} {
			if got := shown(series.got, 6); got != series.want {
				t.Errorf("%s: %s, want %s", series.name, got, series.want)
			}
		}
		if len(d.Refusals) != 1 || d.Interval != 5 || d.End.Unix()%5 != 0 || time.Since(d.End) >= 5*time.Second {
			t.Errorf("%d reasons, ends at %s, every %d", len(d.Refusals), d.End, d.Interval)
		}
	})
}

// The history has 15 minutes, and nothing of before. What did not run has no points.
func TestHistoryForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(traffic)
		r, pass := run(t, c)
		c.refused.Add(5)
		pass(20*time.Minute, 1000)
		d := r.decoded(t)
		if n := slices.Index(d.BytesUp, nil); n >= 0 || len(d.Refusals) != 0 {
			t.Errorf("no point at %d, %d reasons", n, len(d.Refusals))
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, later := range []time.Duration{20 * time.Second, time.Hour} {
			r.history.note(time.Now().Add(later), r.counting.totals(), 1, 1, false)
			d = decode(t, r.history.answer(r.history.last))
			if got := shown(d.SessionsTCP, 4); got != "- - - 1 " {
				t.Errorf("after a pause: %s", got)
			}
		}
		if d.SessionsTCP[0] != nil {
			t.Error("points of before are shown as if they were of now")
		}
	})
}

// A clock that is put back makes no points twice, and does not stop the history for as long.
func TestHistoryWithAClockThatIsPutBack(t *testing.T) {
	t.Parallel()
	h, now := new(history), time.Now()
	note := func(at time.Duration) { h.note(now.Add(at), session.Totals{}, 1, 0, h.last == 0) }
	note(0)
	note(time.Minute)
	last := h.last
	note(30 * time.Second)
	if h.last != last {
		t.Error("a point was made twice")
	}
	note(-24 * time.Hour)
	note(-24*time.Hour + 10*time.Second)
	if h.last >= last {
		t.Error("no points for a day")
	}
}

// There is a look every 5 seconds, and each second while somebody asks.
func TestLooks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(traffic)
		r, pass := run(t, c)
		before := c.looks.Load()
		pass(5*time.Minute, 0)
		if n := c.looks.Load() - before; n != 60 {
			t.Errorf("%d looks in 5 minutes in which nobody has asked", n)
		}
		before = c.looks.Load()
		for range 300 {
			for range 10 {
				r.mu.Lock()
				r.fresh()
				r.mu.Unlock()
			}
			pass(time.Second, 0)
		}
		if n := c.looks.Load() - before; n < 295 || n > 605 {
			t.Errorf("%d looks in 5 minutes in which somebody has asked ten times a second", n)
		}
		pass(time.Minute, 0)
		before = c.looks.Load()
		pass(time.Minute, 0)
		if n := c.looks.Load() - before; n != 12 {
			t.Errorf("%d looks in the second minute after that", n)
		}
	})
}

// Rates are of the last 10 seconds, to the second for somebody who goes on asking.
func TestRatesOfAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &traffic{lines: []*session.Line{{Network: "tcp", Listener: ":1"}, {Network: "tcp", Listener: ":2"}}}
		first, second := c.lines[0], c.lines[1]
		r, pass := run(t, c)
		read := func() (all statusRates, ofLine float64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.fresh()
			_, ofLine = r.lineRates(first)
			if up, down := r.lineRates(second); up != 0 || down != 0 {
				t.Errorf("%v and %v of a line with nothing", up, down)
			}
			return r.rates(), ofLine
		}
		if all, ofLine := read(); all != (statusRates{}) || ofLine != 0 {
			t.Errorf("at first: %+v, %v", all, ofLine)
		}
		pass(time.Minute, 1000)
		first.BytesDown.Store(60_000)
		if all, _ := read(); math.Abs(all.BytesUp-1000) > 50 || math.Abs(all.BytesDown-2000) > 100 || math.Abs(all.Sessions-10) > 1 {
			t.Errorf("after a minute: %+v", all)
		}
		for second := range 30 {
			c.refused.Add(10)
			pass(time.Second, 4000)
			first.BytesDown.Add(500)
			all, ofLine := read()
			if second > 11 && (math.Abs(all.BytesUp-4000) > 250 || math.Abs(all.Refusals-10) > 1.1 || math.Abs(ofLine-500) > 55) { // a step more or less
				t.Errorf("in second %d: %+v, %v", second, all, ofLine)
			}
		}
		r.mu.Lock()
		c.lines = c.lines[1:]
		r.mu.Unlock()
		pass(time.Second, 0)
		if read(); len(r.lines) != 0 {
			t.Error("a line is remembered that has gone")
		}
	})
}

// There is one recorder, whoever holds it, and its goroutine ends with the last one: TestMain finds what is left.
func TestRecorderIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := 0
		acquire := func() *recorder {
			ref, err := recorders.Acquire(struct{}{}, func() (*recorder, error) { made++; return newRecorder(new(traffic).counting()), nil })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ref.Release(); _ = ref.Release() })
			return ref.Value()
		}
		if first := acquire(); acquire() != first || current() != first || made != 1 {
			t.Errorf("%d recorders", made)
		}
	})
}
