package gate

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Calls are the system calls of a process in the order in which they began.
type Calls []Call

// Call is one system call. Result is what it returned: the bytes, for calls that move some; 0 for errors and for calls that had not ended.
type Call struct {
	Thread int
	Name   string
	Result int64
}

// Count returns how many calls there are of each name.
func (c Calls) Count() map[string]int {
	count := make(map[string]int)
	for _, call := range c {
		count[call.Name]++
	}
	return count
}

// Sum adds up the results of the calls with these names.
func (c Calls) Sum(names ...string) (sum int64) {
	for _, call := range c {
		if slices.Contains(names, call.Name) {
			sum += call.Result
		}
	}
	return sum
}

// Trace returns the system calls of all threads of the process while f runs. It makes each call much slower.
func (p *Process) Trace(f func()) Calls {
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
	straceBegin = regexp.MustCompile(`^(\d+)\s+(\w+)\(`)
	straceEnd   = regexp.MustCompile(`^(\d+)\s.* = (\d+)$`)
)

func parseStrace(log string) (calls Calls) {
	last := make(map[string]int) // call by thread
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if found := straceBegin.FindStringSubmatch(line); found != nil {
			thread, _ := strconv.Atoi(found[1])
			last[found[1]] = len(calls)
			calls = append(calls, Call{Thread: thread, Name: found[2]})
		}
		if found := straceEnd.FindStringSubmatch(line); found != nil {
			if at, ok := last[found[1]]; ok {
				calls[at].Result, _ = strconv.ParseInt(found[2], 10, 64)
			}
		}
	}
	return calls
}
