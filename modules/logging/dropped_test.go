package logging

import (
	"context"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// stuck is a collector that takes nothing until ctx ends.
type stuck struct{}

func (stuck) Send(ctx context.Context, batch []delivery.Entry) delivery.Result {
	<-ctx.Done()
	return delivery.Result{Retry: batch, Err: ctx.Err()}
}

func (stuck) Close() {}

// An entry that finds no room costs next to nothing: there may be many, just when there is too much to do.
func TestDroppingIsCheap(t *testing.T) {
	options, err := sending{queue: 1}.options()
	if err != nil {
		t.Fatal(err)
	}
	options.Timeout = time.Hour
	r := newRemote("stuck", "stuck", stuck{}, options)
	defer func() {
		r.queue.Close(0)
		if err := r.Destruct(); err != nil {
			t.Error(err)
		}
		waitFor(t, "the writer to go", func() bool {
			sends.mu.Lock()
			defer sends.mu.Unlock()
			_, there := sends.all[r]
			return !there
		})
	}()
	to, text := &line{"stuck", "stuck"}, []byte("{}\n")
	for range 2 { // the second one finds the queue full, which is said
		_, _ = to.Write(text)
	}
	if !r.crowded.Is() {
		t.Fatal("nothing was dropped")
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = to.Write(text) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
