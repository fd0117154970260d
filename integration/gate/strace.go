package gate

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Syscalls is what a process has called, by name.
type Syscalls map[string]struct {
	Calls int
	// Sum of the results that were not errors: bytes, for the calls that move some.
	Sum int64
}

// Total returns the number of calls.
func (s Syscalls) Total() (calls int) {
	for _, call := range s {
		calls += call.Calls
	}
	return calls
}

// Trace returns the system calls that all threads of the process make while f runs. It slows each of them down a lot.
func (p *Process) Trace(f func()) Syscalls {
	p.tb.Helper()
	path := filepath.Join(p.dir, "strace")
	cmd := exec.Command("strace", "-f", "-s", "0", "-o", path, "-p", strconv.Itoa(p.PID()))
	messages, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.tb.Fatalf("strace: %v; `make test` installs it", err)
	}
	ended := make(chan struct{})
	attached := make(chan string, 1)
	go func() {
		defer close(ended)
		// "strace: Process 123 attached with 9 threads", once it has them all.
		first, _ := bufio.NewReader(messages).ReadString('\n')
		attached <- first
		_, _ = io.Copy(io.Discard, messages)
		_ = cmd.Wait() // it ends with the signal that it detaches at
	}()
	expired := time.AfterFunc(startTimeout, func() { cmd.Process.Kill() })
	first := <-attached
	expired.Stop()
	if !strings.Contains(first, "attached") {
		p.tb.Fatalf("strace: %q: tracing another process takes root, or a kernel that allows it", first)
	}
	f()
	cmd.Process.Signal(os.Interrupt) // it detaches
	select {
	case <-ended:
	case <-time.After(startTimeout):
		cmd.Process.Kill()
		p.tb.Fatal("strace does not end")
	}
	log, err := os.ReadFile(path)
	if err != nil {
		p.tb.Fatal(err)
	}
	return parseStrace(string(log))
}

// A call during which another thread made one is written as "123 read(4 <unfinished ...>", and later "123 <... read resumed>) = 1".
var (
	straceBegin = regexp.MustCompile(`^\d+\s+(\w+)\(`)
	straceEnd   = regexp.MustCompile(`^\d+\s+(?:<\.\.\. )?(\w+)(?:\(| resumed>).* = (\d+)$`)
)

func parseStrace(log string) Syscalls {
	calls := make(Syscalls)
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if found := straceBegin.FindStringSubmatch(line); found != nil {
			call := calls[found[1]]
			call.Calls++
			calls[found[1]] = call
		}
		if found := straceEnd.FindStringSubmatch(line); found != nil {
			call := calls[found[1]]
			result, _ := strconv.ParseInt(found[2], 10, 64)
			call.Sum += result
			calls[found[1]] = call
		}
	}
	return calls
}
