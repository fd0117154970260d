package admin

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// A walk over many sessions takes a while, one more than another, and bytes go on moving meanwhile. Rates are true all the same.
func TestRatesDoNotDependOnHowLongWalksTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, walks := time.Now(), 0
		from := (&traffic{}).counting()
		from.count = func(func()) int {
			if walks++; walks%3 == 0 {
				time.Sleep(3 * time.Second)
			}
			return 0
		}
		from.totals = func() session.Totals { return session.Totals{BytesUp: time.Since(began).Milliseconds()} }
		time.Sleep(4 * time.Second) // the test looks when no walk is under way, which holds the lock
		r := newRecorder(from)
		t.Cleanup(func() { _ = r.Destruct() })
		for range 20 {
			time.Sleep(5 * time.Second)
			r.mu.Lock()
			rates, last, n := r.rates(), r.history.points[r.history.last%points], walks
			r.mu.Unlock()
			if n > 3 && (math.Abs(rates.BytesUp-1000) > 5 || math.Abs(last.up-1000) > 5) {
				t.Errorf("after %d walks: %v and %v bytes a second, want 1000", n, rates.BytesUp, last.up)
			}
		}
	})
}
