// Command bench compares Portgate with HAProxy, nginx (stream) and caddy-l4's own proxy handler, end to end: real processes,
// real TCP connections and UDP sessions over loopback. docs/performance.md says how to read what it prints. It runs on Linux.
//
//	bench -caddy bin/caddy -json bench.json -sweep bench.png
//
// The client side is in this process, the backend in a second one, so that neither is counted as a proxy's CPU.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

// settings are the flags.
type settings struct {
	caddy, json, markdown, sweep, only string

	rounds, sweepRounds     int
	duration, sweepDuration time.Duration
	warmup                  time.Duration
	idleSessions, sweepMost int
}

// backendRole is the first argument of the second process.
const backendRole = "backend"

func main() {
	// There is little garbage, and a collector that stops the loops would show up in the durations.
	debug.SetGCPercent(-1)
	// The kernel ends the children with the thread that has started them, and this one lasts.
	runtime.LockOSThread()
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 3 && args[0] == backendRole {
		loops, err := strconv.Atoi(args[1])
		ports, err2 := strconv.Atoi(args[2])
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		runtime.GOMAXPROCS(loops + 1) // each loop keeps one; the rest of the program needs another
		return runBackend(loops, ports, os.Stdin, os.Stdout)
	}
	s, err := parseFlags(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second ctrl-C ends this process at once, and the kernel the others
	report, err := compare(ctx, s)
	if err != nil {
		return err
	}
	return write(s, report)
}

func parseFlags(args []string) (s settings, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.caddy, "caddy", "bin/caddy", "the binary under `test`")
	flags.StringVar(&s.json, "json", "", "write all rounds to this `file`")
	flags.StringVar(&s.markdown, "markdown", "", "replace the tables in this `file`, between its two markers")
	flags.StringVar(&s.sweep, "sweep", "", "measure exchanges over the number of connections as well, and plot them to this PNG `file`")
	flags.StringVar(&s.only, "only", "", "run only the workloads whose name matches this `pattern`")
	flags.IntVar(&s.rounds, "rounds", 5, "how often each workload is run through each target")
	flags.IntVar(&s.sweepRounds, "sweep-rounds", 3, "the same for the plot")
	flags.DurationVar(&s.duration, "time", 800*time.Millisecond, "how long a round is measured, and how long idle sessions are left alone")
	flags.DurationVar(&s.sweepDuration, "sweep-time", 500*time.Millisecond, "the same for the plot")
	flags.IntVar(&s.sweepMost, "sweep-most", 8000, "the most connections in the plot")
	flags.DurationVar(&s.warmup, "warmup", 250*time.Millisecond, "how long a workload runs before it is measured")
	flags.IntVar(&s.idleSessions, "idle", 4000, "how many idle sessions")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	switch {
	case flags.NArg() > 0:
		return s, fmt.Errorf("%q: expected flags only", flags.Arg(0))
	case s.rounds < 1 || s.sweepRounds < 1:
		return s, errors.New("-rounds, -sweep-rounds: expected 1 or more")
	case s.duration <= 0 || s.sweepDuration <= 0 || s.warmup <= 0:
		return s, errors.New("-time, -sweep-time, -warmup: expected more than 0")
	}
	return s, nil
}

// compare runs everything that the flags ask for.
func compare(ctx context.Context, s settings) (*Report, error) {
	only, err := regexp.Compile(s.only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	b := &bench{settings: s, targets: targets(), log: io.Discard}
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		b.log = os.Stderr
	}
	if b.sessions, err = mostSessions(); err != nil {
		return nil, err
	}
	for name, n := range map[string]int{"-idle": s.idleSessions, "-sweep-most": s.sweepMost} {
		if n < 1 || n > b.sessions {
			return nil, fmt.Errorf("%s: \"%d\": expected a number from 1 to %d, which the limit of open files allows", name, n, b.sessions)
		}
	}
	if b.programs, err = findPrograms(s.caddy); err != nil {
		return nil, err
	}
	var work []workload
	for _, w := range workloads(s.idleSessions) {
		if only.MatchString(w.name) {
			work = append(work, w)
		}
	}
	runtime.GOMAXPROCS(b.loops() + 2) // each loop keeps one; the rest of the program needs others
	defer b.stop()
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	return b.compare(ctx, work)
}

// mostSessions returns how many sessions a proxy can have: each takes two files, and it has some others.
func mostSessions() (int, error) {
	const others, enough = 500, 9500
	files, err := openFiles()
	if err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	return min((files-others)/2, enough), nil
}

func (b *bench) compare(ctx context.Context, work []workload) (*Report, error) {
	began := time.Now()
	report := newReport(b, work)
	var err error
	if report.Rounds, err = b.run(ctx, b.rounds, work); err != nil {
		return nil, err
	}
	if b.sweep != "" {
		if report.Sweep, err = b.runSweep(ctx); err != nil {
			return nil, err
		}
	}
	report.Summary = summarize(report.Rounds, work, report.Targets)
	report.Seconds = time.Since(began).Seconds()
	return report, nil
}

// write puts the report where the flags want it.
func write(s settings, report *Report) error {
	tables := report.markdown()
	fmt.Print(tables)
	var errs []error
	if s.json != "" {
		data, err := json.MarshalIndent(report, "", "\t")
		if err == nil {
			err = os.WriteFile(s.json, append(data, '\n'), 0o644)
		}
		errs = append(errs, err)
	}
	if s.markdown != "" {
		errs = append(errs, replaceTables(s.markdown, tables))
	}
	if s.sweep != "" {
		errs = append(errs, plotSweep(s.sweep, report.Sweep))
	}
	return errors.Join(errs...)
}
