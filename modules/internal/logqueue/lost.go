package logqueue

import (
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// lostEvery is how often it is said that entries can't be written. A full disk has each of them fail.
const lostEvery = time.Minute

// failures are entries that could not be written since that was said.
var failures struct {
	mu    sync.Mutex
	count int
	said  time.Time
}

// lost counts an entry that could not be written, to a file on a full disk or to a connection that is gone, and says so now and then: in the default
// log, and on stderr, because it may be the default log that can't be written.
func lost(k kind, err error) {
	dropped(k).Inc()
	failures.mu.Lock()
	failures.count++
	n, due := failures.count, time.Since(failures.said) >= lostEvery
	if due {
		failures.count, failures.said = 0, time.Now()
	}
	failures.mu.Unlock()
	if !due {
		return
	}
	fmt.Fprintf(os.Stderr, "%s a log can't be written, %d entries are lost: %v\n", time.Now().Format(time.RFC3339), n, err)
	Default("portgate.log").Warn("a log can't be written, its entries are lost", zap.Int("entries", n), zap.Error(err))
}
