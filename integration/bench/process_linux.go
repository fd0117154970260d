package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// process is a program that the benchmark has started: a proxy or the backend.
type process struct {
	cmd    *exec.Cmd
	output string // path of the file with its stdout and stderr
	exited chan struct{}
}

// stopTimeout is what a program gets between SIGTERM and SIGKILL.
const stopTimeout = 5 * time.Second

// startProcess starts the program in a folder of its own. It gets no signal from the terminal, because it is ended in
// order, and ends with this process in any case.
func startProcess(dir string, args ...string) (*process, error) {
	p := &process{output: filepath.Join(dir, "output"), exited: make(chan struct{})}
	output, err := os.Create(p.output)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Dir = dir
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", args[0], err)
	}
	go func() {
		_ = p.cmd.Wait() // p.cmd.ProcessState has it
		close(p.exited)
	}()
	return p, nil
}

// stop ends the process and what it has started.
func (p *process) stop() {
	if p == nil { // direct
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // the process group that it leads
		<-p.exited
	}
}

// said returns the end of what the process has written, to explain a failure.
func (p *process) said() string {
	if p == nil {
		return ""
	}
	data, _ := os.ReadFile(p.output)
	const most = 4000
	return string(bytes.TrimSpace(data[max(0, len(data)-most):]))
}

// pids returns the process and all its descendants.
func (p *process) pids() ([]int, error) {
	pids := []int{p.cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil || len(lists) == 0 {
			return pids, fmt.Errorf("process %d: it has ended, or /proc shows no children", pids[i])
		}
		for _, list := range lists {
			data, err := os.ReadFile(list)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // a thread may end meanwhile
				return pids, err
			}
			for field := range strings.FieldsSeq(string(data)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					return pids, fmt.Errorf("%s: %q: expected process ids", list, data)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// cpu returns the user and system time that the process and its descendants have used.
func (p *process) cpu() (time.Duration, error) {
	if p == nil {
		return 0, nil
	}
	pids, err := p.pids()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range pids {
		used, err := processClock(pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// processClock reads the CPU-time clock of a process (clock_getcpuclockid(3)): the scheduler's own sum over all threads, also
// those that have ended, in nanoseconds. /proc/<pid>/stat has the same in ticks of 10 ms.
func processClock(pid int) (time.Duration, error) {
	const schedulerClock = 2 // CPUCLOCK_SCHED
	id := ^pid<<3 | schedulerClock
	var ts syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("the CPU-time clock of process %d: %w", pid, errno)
	}
	return time.Duration(ts.Nano()), nil
}

// residentKiB returns the memory of the process and its descendants. It adds up what is mapped, which is exact;
// the kernel's counter in /proc/<pid>/status may be off by some pages per CPU.
func (p *process) residentKiB() (int, error) {
	pids, err := p.pids()
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		kib, err := field(data, "Rss:")
		if err != nil {
			return 0, fmt.Errorf("smaps_rollup of process %d: %w", pid, err)
		}
		sum += kib
	}
	return sum, nil
}

// field returns the number behind a name in a file of /proc.
func field(data []byte, name string) (int, error) {
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == name {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("%q is missing", name)
}
