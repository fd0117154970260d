package logqueue

import (
	"fmt"
	"os"
	"reflect"
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
	// In its queue: stderr may be a pipe that nobody reads, and what was lost here is written again when there is room.
	put(destination{address: reflect.ValueOf(os.Stderr).Pointer()}, other, otherLimit,
		onStderr(fmt.Sprintf("%s a log can't be written, %d entries are lost: %v\n", time.Now().Format(time.RFC3339), n, err)))
	Default("portgate.log").Warn("a log can't be written, its entries are lost", zap.Int("entries", n), zap.Error(err))
}

// onStderr is a line for stderr.
type onStderr string

func (text onStderr) write() error {
	_, err := os.Stderr.WriteString(string(text))
	return err
}
