package logqueue

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A line is out when Write returns, unless the writer stalls; then one line waits for a moment and the others not at all.
func TestWriter(t *testing.T) {
	d := destOf("writer")
	d.reset() // of an earlier run
	w := Writer(d)
	const healthy = 100
	late := 0 // where the writer does not get the processor for as long as one that stalls
	for i := range healthy {
		fmt.Fprintf(w, "before %d\n", i)
		if len(d.lines()) != i+1 {
			late++
			flush(t)
		}
		if n := len(d.lines()); n != i+1 {
			t.Fatalf("%d lines after %d", n, i+1)
		}
	}
	if late > healthy/2 {
		t.Errorf("%d of %d lines are late", late, healthy)
	}
	goOn := stalled(t, "writer")
	before := testutil.ToFloat64(dropped(other))
	start := time.Now()
	const more = 500
	for i := range lineLimit + more {
		fmt.Fprintf(w, "while it stalls %d\n", i)
	}
	if took := time.Since(start); took > 20*patience { // without the queue it is for good, with a wait for each line 17 minutes
		t.Errorf("took %v", took)
	}
	// A warning that the queue is full may pass through another one.
	if n := testutil.ToFloat64(dropped(other)) - before; n != more {
		t.Errorf("%v dropped, want %v", n, more)
	}
	goOn()
	flush(t)
	if lines := d.lines(); len(lines) != lineLimit || lines[lineLimit-1] != fmt.Sprintf("while it stalls %d", lineLimit-1) {
		t.Errorf("%d lines", len(lines))
	}
	inTime := 0
	for i := range healthy {
		line := fmt.Sprint("after ", i)
		fmt.Fprintln(w, line)
		if lines := d.lines(); lines[len(lines)-1] == line {
			inTime++
		}
	}
	if inTime < healthy/2 {
		t.Errorf("%d of %d lines are in time although the writer takes them again", inTime, healthy)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// The access log may go to a queued writer: the queue of its entries is not that of the writer's lines.
func TestAccessLogToAWriterWithAQueue(t *testing.T) {
	goOn := stalled(t, "both")
	w := Writer(destOf("both"))
	log := WrapAccess(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(w), zap.InfoLevel)), 1000)
	for range 100 {
		log.Info("session")
	}
	goOn()
	flush(t)
	if n := destOf("both").count("session"); n != 100 {
		t.Errorf("%d entries", n)
	}
}

func TestCloseOfAWriterThatStalls(t *testing.T) {
	goOn := stalled(t, "closed")
	w := Writer(destOf("closed"))
	start := time.Now()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	fmt.Fprintln(w, "late")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 20*patience {
		t.Errorf("took %v", took)
	}
	goOn()
}
