package logqueue

import (
	"bytes"
	"io"
	"reflect"
	"sync/atomic"
	"time"
)

const (
	// lineLimit is how many lines may wait for a writer.
	lineLimit = 10_000
	// patience is how long a line may take before its writer counts as stalled. A healthy one takes microseconds.
	patience = 100 * time.Millisecond
)

// writer is a log writer that stalls nobody for longer than patience, and nobody at all while it is known to be stalled. A
// line that comes out at once is out when Write returns, so that the last words of a process are not lost.
type writer struct {
	inner   io.WriteCloser
	stalled atomic.Bool
}

// Writer makes a log writer that never blocks for long of one that may.
func Writer(inner io.WriteCloser) io.WriteCloser { return &writer{inner: inner} }

// Write implements [io.Writer]. It never fails: what is dropped is counted, and an error comes too late to be returned.
func (w *writer) Write(b []byte) (int, error) {
	t := &text{to: w, text: bytes.Clone(b), done: make(chan struct{})}
	// The entries of this package that go to w wait for another destination: what w itself has accepted.
	ok := put(destination{reflect.ValueOf(w).Pointer(), true}, other, lineLimit, t)
	if !ok || w.stalled.Load() {
		return len(b), nil
	}
	expired := time.NewTimer(patience)
	defer expired.Stop()
	select {
	case <-t.done:
	case <-expired.C:
		w.stalled.Store(true)
	}
	return len(b), nil
}

// Close closes the writer within once it has what waits for it, or does not take it.
func (w *writer) Close() error {
	if w.stalled.Load() {
		return w.inner.Close() // which may end the write that stalls
	}
	done := make(chan struct{})
	put(destination{reflect.ValueOf(w).Pointer(), true}, other, lineLimit, &text{to: w, done: done})
	expired := time.NewTimer(patience)
	defer expired.Stop()
	select {
	case <-done:
	case <-expired.C:
	}
	return w.inner.Close()
}

// text is what one call of Write was given.
type text struct {
	to   *writer
	text []byte
	done chan struct{}
}

func (t *text) write() (err error) {
	if len(t.text) > 0 {
		_, err = t.to.inner.Write(t.text)
	}
	t.to.stalled.Store(false)
	close(t.done)
	return err
}
