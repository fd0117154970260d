package forward

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
)

// What is missing is there again when nothing has failed for a while, also where the last failure comes just as the timer fires.
func TestMissingIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		what := lack{noPort: true}
		isMissing := func() bool {
			missing.Lock()
			defer missing.Unlock()
			return missing.parts[what] != nil
		}
		noteLocal(&relay.LocalError{NoPort: true})
		time.Sleep(missingFor - 1)
		noteLocal(&relay.LocalError{NoPort: true})
		endMissing(what) // the timer, which has fired before
		if !isMissing() {
			t.Error("it is over just after a failure")
		}
		time.Sleep(missingFor)
		synctest.Wait()
		if isMissing() {
			t.Error("it is never over")
		}
	})
}
