package main

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestProcessClock compares the clock with what the kernel says about this process in another way.
func TestProcessClock(t *testing.T) {
	t.Parallel()
	usage := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	const rounding = 2 * time.Microsecond // of the two parts
	before := usage()
	clock, err := processClock(os.Getpid())
	after := usage()
	if err != nil || clock < before-rounding || clock > after+rounding {
		t.Errorf("got %v, %v, want something from %v to %v", clock, err, before, after)
	}
}

// TestDescendantsAreFound starts a process that starts another one, as nginx does.
func TestDescendantsAreFound(t *testing.T) {
	t.Parallel()
	p, err := startProcess(t.TempDir(), "/bin/sh", "-c", "sleep 60 & wait")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	for deadline := time.Now().Add(testTimeout); ; {
		pids, err := p.pids()
		if err == nil && len(pids) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, %v, want two processes", pids, err)
		}
		time.Sleep(time.Millisecond)
	}
	if kib, err := p.residentKiB(); err != nil || kib == 0 {
		t.Errorf("resident memory: %d KiB, %v", kib, err)
	}
}
