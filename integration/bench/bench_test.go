package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testTimeout bounds a run that takes a few seconds on a quiet machine.
const testTimeout = 2 * time.Minute

// TestEverythingIsMeasured runs each workload through each target for a moment. What comes out is checked for being there, not for
// being good.
func TestEverythingIsMeasured(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte(markBegin+markEnd), 0o600); err != nil {
		t.Fatal(err)
	}
	jsonFile, plot := filepath.Join(dir, "bench.json"), filepath.Join(dir, "bench.png")
	cmd, temp := command(t, "-rounds", "1", "-time", "50ms", "-warmup", "10ms", "-idle", "50",
		"-sweep", plot, "-sweep-rounds", "1", "-sweep-time", "20ms", "-sweep-most", "16", "-json", jsonFile, "-markdown", page)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	mustLeaveNothing(t, temp)

	data, err := os.ReadFile(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	var report Report
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&report); err != nil {
		t.Fatal(err)
	}
	checkMachine(t, report.Machine)
	checkRounds(t, report.Rounds)
	checkSummary(t, report.Summary)
	checkSweep(t, report.Sweep, plot)
	for _, w := range workloads(50) {
		if !strings.Contains(stdout.String(), "| "+w.name+" |") {
			t.Errorf("the tables have no row %q:\n%s", w.name, &stdout)
		}
	}
	if text, err := os.ReadFile(page); err != nil || !strings.Contains(string(text), stdout.String()) {
		t.Errorf("the page has other tables than stdout: %v\n%s", err, text)
	}
	for _, variant := range variants {
		if !strings.Contains(stdout.String(), "### "+variant+"\n") {
			t.Errorf("there is no table of %s:\n%s", variant, &stdout)
		}
	}
}

func checkMachine(t *testing.T, m Machine) {
	t.Helper()
	if m.CPUs == 0 || m.Model == "" || m.MemoryMiB == 0 || m.Kernel == "" || !strings.HasPrefix(m.Go, "go") {
		t.Errorf("machine: %+v", m)
	}
	for _, target := range targets() {
		if version := m.Versions[target.name]; version == "" || strings.Contains(version, "unknown") {
			t.Errorf("version of %s: %q", target.name, version)
		}
	}
}

// checkRounds holds that each workload did its work through each target that can do it, and through no other.
func checkRounds(t *testing.T, rounds []Round) {
	t.Helper()
	for _, w := range workloads(50) {
		for _, target := range targets() {
			i := slices.IndexFunc(rounds, func(r Round) bool { return r.Workload == w.name && r.Target == target.name })
			if i >= 0 != target.does(w) {
				t.Errorf("%s, %s: round %d; the target does it: %v", w.name, target.name, i, target.does(w))
				continue
			}
			if i < 0 {
				continue
			}
			if lack := missing(rounds[i], w, target); lack != "" {
				t.Errorf("%s, %s: %s in %+v", w.name, target.name, lack, rounds[i])
			}
		}
	}
}

func missing(r Round, w workload, target target) string {
	switch {
	case r.Error != "" || r.Failures != 0:
		return "failures"
	case r.Connections != w.connections:
		return "another number of connections"
	case w.kind == idle:
		if r.ResidentBefore <= 0 || r.ResidentAfter <= 0 {
			return "no memory"
		}
		return ""
	case r.Seconds <= 0 || r.GeneratorCPU <= 0 || r.BackendCPU <= 0:
		return "no time"
	case (r.ProxyCPU > 0) != (target.command != nil):
		return "wrong CPU time of the proxy"
	case isBulk(w.kind) && r.Bytes <= 0:
		return "no bytes"
	case !isBulk(w.kind) && r.Operations <= 0:
		return "no operations"
	case w.kind.timed() && (r.P50 <= 0 || r.P99 < r.P50 || r.P999 < r.P99 || r.Max < r.P999):
		return "no durations"
	case w.network == udp && (r.Lost < 0 || r.Sent < r.Lost || r.Sent == 0):
		return "no count of what was sent and lost"
	}
	return ""
}

func checkSummary(t *testing.T, cells []Summary) {
	t.Helper()
	for _, m := range metrics() {
		for _, target := range targets() {
			lost := m.name == lostName
			if !m.shows(target.name) || lost && !target.udp {
				continue
			}
			if !slices.ContainsFunc(cells, func(s Summary) bool {
				compared := target.name == direct || lost || s.ToHAProxy != nil && s.ToBetter != nil // by 0, where none is lost
				return s.Metric == m.name && s.Target == target.name && s.Unit != "" && compared
			}) {
				t.Errorf("the summary has no %s of %s", m.name, target.name)
			}
		}
	}
}

func checkSweep(t *testing.T, rounds []Round, plot string) {
	t.Helper()
	for _, target := range targets() {
		if slices.Contains(variants, target.name) {
			continue
		}
		for _, n := range []int{1, 4, 16} {
			if len(valuesOf(rounds, target.name, n, func(r Round) float64 { return r.P99 })) != 1 {
				t.Errorf("%s: the plot has no point for %d connections", target.name, n)
			}
		}
	}
	file, err := os.Open(plot)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if image, err := png.Decode(file); err != nil || image.Bounds().Dx() < 500 {
		t.Errorf("plot: %v", err)
	}
}

// TestInterruptEndsEverything sends what ctrl-C does, while a workload runs.
func TestInterruptEndsEverything(t *testing.T) {
	cmd, temp := command(t, "-only", "64 connections", "-time", "1m")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const connections = 64
	for deadline := time.Now().Add(testTimeout); descriptors(cmd.Process.Pid) < connections; {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatalf("there is no load after %v", testTimeout)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if running := processesIn(t, temp); len(running) < len(targets())-1 {
		t.Errorf("only these are running: %v", running)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("got %v, want exit code 1\n%s", cmd.ProcessState, &output)
	}
	mustLeaveNothing(t, temp)
}

// TestBadFlags holds that a wrong value is named before anything is started.
func TestBadFlags(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-rounds", "0"}, {"-time", "0s"}, {"-idle", "0"}, {"-idle", "100000"}, {"-sweep-most", "100000"}, {"-only", "("}, {"-json", "a", "b"},
	} {
		if err := run(args); err == nil || !strings.Contains(err.Error(), "expected") && !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%q: got %v, want an error that says what was expected", args, err)
		}
	}
}

// built has the paths of both programs.
type built struct{ bench, caddy string }

var buildDir string

// build returns those that `make test-bench` has compiled before the tests' time limit began. `go test` by hand builds them here.
var build = sync.OnceValues(func() (b built, err error) {
	if dir := os.Getenv("PORTGATE_COMPILED"); dir != "" {
		return built{filepath.Join(dir, "bench"), filepath.Join(dir, "caddy")}, nil
	}
	if buildDir, err = os.MkdirTemp("", "bench-test-"); err != nil {
		return b, err
	}
	b.bench, b.caddy = filepath.Join(buildDir, "bench"), filepath.Join(buildDir, "caddy")
	for _, cmd := range []*exec.Cmd{
		exec.Command("go", "build", "-o", b.bench, "."),
		exec.Command("go", "-C", "../..", "build", "-ldflags", "-s -w", "-o", b.caddy, "./cmd/caddy"),
	} {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return b, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// command returns a benchmark that keeps its folders in temp.
func command(t *testing.T, args ...string) (cmd *exec.Cmd, temp string) {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	temp = t.TempDir()
	cmd = exec.CommandContext(t.Context(), b.bench, append([]string{"-caddy", b.caddy}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd, temp
}

// mustLeaveNothing looks for folders and processes.
func mustLeaveNothing(t *testing.T, temp string) {
	t.Helper()
	entries, err := os.ReadDir(temp)
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if left := processesIn(t, temp); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

func descriptors(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}

// processesIn returns the command lines of the proxies: each runs in a folder of its own in temp.
func processesIn(t *testing.T, temp string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, temp+"/") { // also where it is deleted
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
