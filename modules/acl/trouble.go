package acl

import (
	"sync"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// What may fail with a list, as the metrics call it.
const (
	opLoad    = "load"    // reading it from where it comes from
	opWatch   = "watch"   // being told that a file has changed
	opStore   = "store"   // bringing edits into the storage
	opCompact = "compact" // writing all entries anew, so that the storage has few edits
	opCache   = "cache"   // storing a copy of a list that was fetched
)

// trouble is a list that does not do all that it should. It is said once, with the reason, and once that it is over.
type trouble struct {
	list, operation string

	mu sync.Mutex
	on bool
}

// note says what has come of an attempt: began if the first one of several has failed, ended if one has succeeded again.
func (t *trouble) note(err error, began, ended string, fields ...zap.Field) {
	t.mu.Lock()
	defer t.mu.Unlock()
	log := logqueue.Default("acl").With(zap.String("list", t.list))
	switch {
	case err != nil && !t.on:
		log.Warn(began, append(fields, zap.Error(err))...)
		collectors.failing.WithLabelValues(t.list, t.operation).Inc()
	case err != nil:
		log.Debug(began, append(fields, zap.Error(err))...)
	case t.on:
		log.Info(ended, fields...)
		collectors.failing.WithLabelValues(t.list, t.operation).Dec()
	}
	t.on = err != nil
}

// isOn tells whether the last attempt has failed.
func (t *trouble) isOn() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.on
}

// opened makes the metric be there before something fails.
func (t *trouble) opened(list, operation string) {
	t.list, t.operation = list, operation
	collectors.failing.WithLabelValues(list, operation).Add(0)
}

// forget is called when the list goes.
func (t *trouble) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on {
		collectors.failing.WithLabelValues(t.list, t.operation).Dec()
	}
	t.on = false
}
