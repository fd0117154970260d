package logqueue

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// fullDisk is a writer that fails until there is room again.
type fullDisk struct{ room, written atomic.Int64 }

func (f *fullDisk) Write(b []byte) (int, error) {
	if f.room.Load() == 0 {
		return 0, errors.New("no space left on device")
	}
	f.written.Add(1)
	return len(b), nil
}

// Whoever writes a log does not wait for stderr, which takes nothing where it is a pipe that nobody reads.
func TestWordOfLostEntriesWaitsForNobody(t *testing.T) {
	load(t, "default")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = write
	t.Cleanup(func() {
		_ = read.Close() // which ends a write that waits
		flush(t)
		os.Stderr = stderr
		_ = write.Close()
	})
	if err := write.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := write.Write(make([]byte, 4<<20)); err == nil {
		t.Fatal("the pipe is not full")
	}
	if err := write.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	failures.mu.Lock()
	failures.said = time.Time{} // of an earlier test
	failures.mu.Unlock()
	disk := new(fullDisk)
	log := WrapAccess(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(disk), zap.InfoLevel)), 1000)
	log.Info("lost")
	waitFor(t, "an entry to be lost", func() bool {
		failures.mu.Lock()
		defer failures.mu.Unlock()
		return !failures.said.IsZero()
	})
	disk.room.Store(1)
	log.Info("session")
	waitFor(t, "the entry for which there is room", func() bool { return disk.written.Load() == 1 })
}
