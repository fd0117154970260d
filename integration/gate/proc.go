package gate

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Descriptors returns the number of open file descriptors.
func (p *Process) Descriptors() int {
	p.tb.Helper()
	return len(p.descriptors())
}

// descriptors returns what each open descriptor points to, as in "socket:[1234]".
func (p *Process) descriptors() []string {
	p.tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.PID())
	entries, err := os.ReadDir(dir)
	if err != nil {
		p.tb.Fatal(err)
	}
	var targets []string
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil { // else closed meanwhile
			targets = append(targets, target)
		}
	}
	return targets
}

// Listeners returns how many listening TCP sockets the process has.
func (p *Process) Listeners() int {
	p.tb.Helper()
	const (
		stateField, inodeField = 3, 9 // proc_pid_net(5): st, inode
		listening              = "0A"
	)
	owned := make(map[string]bool)
	for _, target := range p.descriptors() {
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			owned[strings.TrimSuffix(inode, "]")] = true
		}
	}
	count := 0
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.PID(), table))
		if err != nil {
			p.tb.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) > inodeField && fields[stateField] == listening && owned[fields[inodeField]] {
				count++
			}
		}
	}
	return count
}

// ResidentKiB returns the resident memory.
func (p *Process) ResidentKiB() int {
	p.tb.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.tb.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "VmRSS:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				p.tb.Fatalf("VmRSS: %v", err)
			}
			return kib
		}
	}
	p.tb.Fatal("no VmRSS in /proc/<pid>/status")
	return 0
}

// Baseline is what an idle process holds: goroutines and descriptors.
type Baseline struct {
	process                *Process
	goroutines, listenings int
	descriptors            []string
}

// Baseline returns what the process holds now, after a garbage collection, which frees the pipes in a sync.Pool. Call it after a
// first connection and a first reload, because some goroutines and descriptors are created once and kept.
func (p *Process) Baseline() Baseline {
	p.tb.Helper()
	for range 2 { // a sync.Pool is empty after the second
		p.MustGet("/debug/pprof/heap?gc=1&debug=1")
	}
	return Baseline{p, p.Goroutines(), p.Listeners(), p.descriptors()}
}

// MustReturn waits until the process holds no more than the baseline.
func (b Baseline) MustReturn(tb testing.TB, timeout time.Duration) {
	tb.Helper()
	Eventually(tb, timeout, func() error {
		now := b.process.Baseline()
		if now.goroutines > b.goroutines || now.listenings > b.listenings || len(now.descriptors) > len(b.descriptors) {
			return fmt.Errorf("%d goroutines (were %d), %d listeners (were %d), %d descriptors (were %d):\n%v\nwere\n%v",
				now.goroutines, b.goroutines, now.listenings, b.listenings,
				len(now.descriptors), len(b.descriptors), now.descriptors, b.descriptors)
		}
		return nil
	})
}
