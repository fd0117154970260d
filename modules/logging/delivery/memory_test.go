package delivery

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"
)

// What was sent takes no memory any more, though other entries wait that came with it.
func TestSentLinesAreLetGo(t *testing.T) {
	t.Parallel()
	first, second, goOn := make(chan weak.Pointer[byte], 1), make(chan struct{}), make(chan struct{})
	n := 0
	c := &collector{}
	c.answers(func(_ context.Context, batch []Entry) Result {
		switch n++; n {
		case 1:
			<-goOn // until the others wait
			first <- weak.Make(&batch[0].Line[0])
		case 2:
			close(second)
			<-goOn
		}
		return Result{}
	})
	q := New(c, Options{Entries: 10, Bytes: 1 << 20, BatchEntries: 1, BatchBytes: 1 << 20, Timeout: time.Minute, MinPause: time.Second, MaxPause: time.Second}, Observer{})
	for range 3 {
		q.Put(make([]byte, 1<<10))
	}
	goOn <- struct{}{}
	line := <-first
	<-second // it is being sent, and a third one waits
	for deadline := time.Now().Add(30 * time.Second); line.Value() != nil; runtime.GC() {
		if time.Now().After(deadline) {
			t.Error("a line that was sent is kept")
			break
		}
	}
	close(goOn)
	<-q.Close(time.Minute)
}
