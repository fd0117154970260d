package main

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine describes what the figures were measured on.
type Machine struct {
	CPUs      int               `json:"cpus"`
	Model     string            `json:"model"`
	MemoryMiB int               `json:"memory_mib"`
	Kernel    string            `json:"kernel"`
	Go        string            `json:"go"` // that the binary was built with
	Versions  map[string]string `json:"versions"`
}

func describeMachine(p programs, all []target) Machine {
	m := Machine{CPUs: runtime.NumCPU(), Model: "unknown", Go: moduleVersion(p.caddy, ""), Versions: make(map[string]string)}
	cpus, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpus)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.Model = strings.TrimSpace(value)
			break
		}
	}
	memory, _ := os.ReadFile("/proc/meminfo")
	if kib, err := field(memory, "MemTotal:"); err == nil {
		m.MemoryMiB = kib / 1024
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = "Linux " + strings.TrimSpace(string(kernel))
	for _, t := range all {
		m.Versions[t.name] = t.version(p)
	}
	return m
}

// moduleVersion returns the version of a module in a Go binary, or that of Go itself.
func moduleVersion(binary, module string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "unknown"
	}
	if module == "" {
		return info.GoVersion
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			return dep.Version
		}
	}
	return "unknown"
}

// versionOf returns the word behind a prefix in what a program says for -v; nginx says it on stderr.
func versionOf(program, prefix string) string {
	out, err := exec.Command(program, "-v").CombinedOutput()
	_, rest, found := strings.Cut(string(out), prefix)
	if words := strings.Fields(rest); err == nil && found && len(words) > 0 {
		return words[0]
	}
	return "unknown"
}

// openFiles lifts the soft limit of open files to the hard one, for this process and those that it starts, and returns it.
func openFiles() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	limit.Cur = limit.Max // explicitly: what Go's runtime lifts by itself is not inherited
	return int(limit.Cur), syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// idleTime returns how long all processors together have been idle since the machine started, or were another guest's, and
// how many they are. The rest of the time they were busy: with processes, kernel threads and interrupts alike. Idle time is
// measured by the kernel, where most of the other columns of /proc/stat count samples.
func idleTime() (idle time.Duration, processors int, err error) {
	const tick = time.Second / 100 // USER_HZ
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	all, rest, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(all)
	for _, column := range []int{4, 5, 8} { // idle, iowait, steal; the name of the line is 0
		if column < len(fields) {
			ticks, err := strconv.Atoi(fields[column])
			if err != nil {
				return 0, 0, err
			}
			idle += time.Duration(ticks) * tick
		}
	}
	return idle, strings.Count("\n"+rest, "\ncpu"), nil // a line each
}
