package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// Round is what was measured for one workload through one target, once.
type Round struct {
	Round       int    `json:"round"`
	Workload    string `json:"workload"`
	Target      string `json:"target"`
	Connections int    `json:"connections"`

	Seconds    float64 `json:"seconds"`
	Operations int64   `json:"operations"` // exchanges, connections opened and closed, or datagrams that have arrived
	Bytes      int64   `json:"bytes"`      // of bulk transfers
	Failures   int64   `json:"failures"`
	Lost       int64   `json:"lost"` // exchanges that had no answer in time, or datagrams that never arrived
	Sent       int64   `json:"sent"` // what may have been lost: exchanges, or datagrams, those of the warm-up included

	// CPU seconds. The machine's includes the other three, kernel threads, and whatever else was running.
	ProxyCPU     float64 `json:"proxy_cpu"`
	GeneratorCPU float64 `json:"generator_cpu"`
	BackendCPU   float64 `json:"backend_cpu"`
	MachineCPU   float64 `json:"machine_cpu"`

	P50  float64 `json:"p50_us"`
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p999_us"`
	Max  float64 `json:"max_us"`

	ResidentBefore int `json:"resident_before_kib"` // idle sessions only
	ResidentAfter  int `json:"resident_after_kib"`

	Error string `json:"error,omitempty"` // the target could not do it; the figures are then 0
}

// bench is the state of a run.
type bench struct {
	programs
	settings
	targets  []target
	sessions int // the most that a proxy can have
	backend  *backend
	ports    []endpoint // one for each target; reserved at the start, for the load leaves few that are free
	fresh    []endpoint // the same for those that are started to hold idle sessions
	running  []*instance
	log      io.Writer
}

// start starts the backend and all targets.
func (b *bench) start(ctx context.Context) (err error) {
	if b.backend, err = startBackend(b.loops(), len(b.targets)+2); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	for range b.targets {
		ports, err := reserveEndpoint()
		if err != nil {
			return err
		}
		fresh, err := reserveEndpoint()
		if err != nil {
			return err
		}
		b.ports, b.fresh = append(b.ports, ports), append(b.fresh, fresh)
	}
	for n := range b.targets {
		i, err := b.launch(ctx, n, b.ports[n], false)
		if err != nil {
			return err
		}
		b.running = append(b.running, i)
	}
	return nil
}

func (b *bench) launch(ctx context.Context, n int, listen endpoint, log bool) (*instance, error) {
	port, err := freeDatagramPort()
	if err != nil {
		return nil, err
	}
	listen.udp = loopback(port)
	return b.targets[n].launch(ctx, start{
		programs: b.programs, listen: listen, sessions: b.sessions, log: log,
		backend: b.backend.addresses[n], others: b.backend.addresses[len(b.targets):],
	})
}

func (b *bench) stop() {
	for _, i := range b.running {
		i.stop()
	}
	if b.backend != nil {
		b.backend.stop()
	}
}

// loops is the number of threads of the generator, and of the backend: half of the machine for both together.
func (b *bench) loops() int { return max(1, runtime.NumCPU()/4) }

// run measures each workload through each target, rounds times. Within a round the targets follow each other closely, so
// that what changes on the machine hits them alike, and each round begins with another one.
func (b *bench) run(ctx context.Context, rounds int, work []workload) ([]Round, error) {
	var all []Round
	for round := range rounds {
		for n, w := range work {
			for turn := range b.targets {
				at := (round + n + turn) % len(b.targets)
				if !b.targets[at].does(w) {
					continue
				}
				fmt.Fprintf(b.log, "\rround %d of %d: %s, %s\x1b[K", round+1, rounds, w.name, b.targets[at].name)
				r, err := b.measure(ctx, at, w)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w\n%s", w.name, b.targets[at].name, err, b.running[at].process.said())
				}
				r.Round, r.Workload, r.Target, r.Connections = round+1, w.name, b.targets[at].name, w.connections
				all = append(all, r)
			}
		}
	}
	fmt.Fprint(b.log, "\r\x1b[K")
	return all, nil
}

// measure runs one workload through one target. What a target fails to do is part of the result, not an error.
func (b *bench) measure(ctx context.Context, at int, w workload) (r Round, err error) {
	i := b.running[at]
	if w.kind == logged {
		if i, err = b.launch(ctx, at, b.fresh[at], true); err != nil {
			return r, err
		}
		defer i.stop()
	}
	if w.kind == idle { // memory that earlier work has left behind would hide what the sessions take
		if i, err = b.launch(ctx, at, b.fresh[at], false); err != nil {
			return r, err
		}
		defer i.stop()
		if r.ResidentBefore, err = i.process.residentKiB(); err != nil {
			return r, err
		}
	}
	_, arrived, err := b.backend.counts()
	if err != nil {
		return r, err
	}
	g, err := newGenerator(w, i.address.of(w), b.loops())
	if err != nil {
		return r, err
	}
	if !w.kind.churns() {
		if err := g.awaitOpen(ctx); err != nil {
			g.stop()
			r.Error = err.Error()
			_, err = b.backend.awaitQuiet(ctx, arrived)
			return r, err
		}
	}
	if w.kind == idle {
		err = b.holdIdle(ctx, i, &r)
	} else {
		err = b.work(ctx, g, i, &r)
	}
	durations := g.stop()
	r.P50, r.P99, r.P999 = us(durations.quantile(.5)), us(durations.quantile(.99)), us(durations.quantile(.999))
	r.Max = us(durations.max)
	sent := g.totals().sent
	all, quietErr := b.backend.awaitQuiet(ctx, arrived+sent)
	if w.kind.oneWay() { // those that were on their way when the round ended are not lost
		r.Sent, r.Lost = sent, arrived+sent-all
	}
	if w.kind == logged {
		err = errors.Join(err, awaitLogged(ctx, filepath.Join(i.dir, logFile), r.Operations))
	}
	return r, errors.Join(err, quietErr)
}

// awaitLogged waits until a log has an entry for each connection that was counted: one that is left out would cost nothing.
func awaitLogged(ctx context.Context, path string, connections int64) error {
	for start := time.Now(); ; {
		written, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		entries := int64(bytes.Count(written, []byte("\n")))
		switch {
		case entries >= connections:
			return nil
		case time.Since(start) > patience:
			return fmt.Errorf("the log has %d entries, expected one for each of %d connections", entries, connections)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// holdIdle looks at the memory when the sessions have been idle for a while.
func (b *bench) holdIdle(ctx context.Context, i *instance, r *Round) (err error) {
	if err := sleep(ctx, b.duration); err != nil {
		return err
	}
	r.ResidentAfter, err = i.process.residentKiB()
	return err
}

// work notes what is done, and what is used for it, between two moments.
func (b *bench) work(ctx context.Context, g *generator, i *instance, r *Round) error {
	begin, err := b.look(g, i)
	if err != nil {
		return err
	}
	g.phase.Store(running)
	before, err := b.await(ctx, g, i, b.warmup, begin)
	if err != nil {
		return err
	}
	g.phase.Store(recording)
	after, err := b.await(ctx, g, i, b.duration, before)
	if err != nil {
		return err
	}
	elapsed := after.at.Sub(before.at)
	r.Seconds = elapsed.Seconds()
	r.Operations = after.operations - before.operations
	r.Bytes = after.bytes - before.bytes
	r.Failures = after.failures - before.failures
	r.Lost = after.lost - before.lost
	r.Sent = r.Operations + r.Lost
	r.ProxyCPU = (after.proxy - before.proxy).Seconds()
	r.GeneratorCPU = (after.generator - before.generator).Seconds()
	r.BackendCPU = (after.backend - before.backend).Seconds()
	capacity := elapsed * time.Duration(after.processors)
	r.MachineCPU = max(0, capacity-(after.idle-before.idle)).Seconds()
	return nil
}

// patience is how long something must not happen until that is the result.
const patience = 10 * time.Second

// await lets the workload run for a while, and longer where thousands of connections or a busy machine would leave some without a turn.
func (b *bench) await(ctx context.Context, g *generator, i *instance, d time.Duration, since moment) (m moment, err error) {
	for {
		if err := sleep(ctx, d); err != nil {
			return m, err
		}
		if m, err = b.look(g, i); err != nil {
			return m, err
		}
		noted := g.phase.Load() < recording || m.durations > 0 || !g.work.kind.timed()
		if noted && m.done()-since.done() >= g.work.least() || m.at.Sub(since.at) > patience {
			return m, nil
		}
	}
}

// moment is a look at all counters.
type moment struct {
	at time.Time
	totals
	proxy, generator, backend, idle time.Duration
	processors                      int
}

// done is how much there is to see.
func (m moment) done() int64 { return m.operations + m.bytes }

func (b *bench) look(g *generator, i *instance) (m moment, err error) {
	var errs [5]error
	var arrived int64
	if g.work.kind.oneWay() { // an answer may have to wait for a processor, so this comes first
		_, arrived, errs[4] = b.backend.counts()
	}
	m.proxy, errs[0] = i.process.cpu()
	m.at, m.totals = time.Now(), g.totals()
	m.operations += arrived
	m.generator, errs[1] = processClock(os.Getpid())
	m.backend, errs[2] = processClock(b.backend.cmd.Process.Pid)
	m.idle, m.processors, errs[3] = idleTime()
	return m, errors.Join(errs[:]...)
}

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// backend is the process behind the proxies.
type backend struct {
	cmd       *exec.Cmd
	in        io.WriteCloser
	out       *bufio.Reader
	addresses []endpoint // one for each target
}

// endpoint is where a target listens, or the backend for it.
type endpoint struct {
	tcp, udp        netip.AddrPort
	denied, limited netip.AddrPort // TCP too, where the target refuses; the backend has none
}

func (e endpoint) of(w workload) netip.AddrPort {
	switch {
	case w.network == udp:
		return e.udp
	case w.kind == denied:
		return e.denied
	case w.kind == limited:
		return e.limited
	default:
		return e.tcp
	}
}

// reserveEndpoint reserves TCP ports, see reservePort.
func reserveEndpoint() (e endpoint, err error) {
	for _, address := range []*netip.AddrPort{&e.tcp, &e.denied, &e.limited} {
		port, err := reservePort()
		if err != nil {
			return e, err
		}
		*address = loopback(port)
	}
	return e, nil
}

func loopback(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
}

func startBackend(loops, ports int) (*backend, error) {
	b := &backend{cmd: exec.Command("/proc/self/exe", backendRole, strconv.Itoa(loops), strconv.Itoa(ports))}
	b.cmd.Stderr = os.Stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b.out = bufio.NewReader(out)
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	for range ports {
		var tcpPort, udpPort int
		if _, err := fmt.Fscan(b.out, &tcpPort, &udpPort); err != nil {
			b.stop()
			return nil, fmt.Errorf("reading its ports: %w", err)
		}
		b.addresses = append(b.addresses, endpoint{tcp: loopback(tcpPort), udp: loopback(udpPort)})
	}
	return b, nil
}

// counts asks how many connections are open, and how many one-way datagrams have arrived so far.
func (b *backend) counts() (open, datagrams int64, err error) {
	if _, err := io.WriteString(b.in, "\n"); err != nil {
		return 0, 0, fmt.Errorf("backend: %w", err)
	}
	if _, err := fmt.Fscan(b.out, &open, &datagrams); err != nil {
		return 0, 0, fmt.Errorf("backend: %w", err)
	}
	return open, datagrams, nil
}

// awaitQuiet waits until the backend has no connection any more, and all datagrams, or none that comes for a while, so that no
// target pays for the work of the one before. It returns how many datagrams there were.
func (b *backend) awaitQuiet(ctx context.Context, all int64) (datagrams int64, err error) {
	began := time.Now()
	last, since := int64(-1), began
	for {
		open, datagrams, err := b.counts()
		if datagrams != last {
			last, since = datagrams, time.Now()
		}
		switch {
		case err != nil:
			return 0, err
		case open == 0 && (datagrams >= all || time.Since(since) > quietTime):
			return datagrams, nil
		case time.Since(began) > quietTimeout:
			return 0, fmt.Errorf("%v after the clients have left, %d connections to the backend are open, or datagrams still arrive", quietTimeout, open)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

const (
	quietTimeout = 20 * time.Second
	quietTime    = 200 * time.Millisecond // a busy machine may leave a proxy or the backend without a processor for so long
)

// stop ends the backend, which ends with its stdin.
func (b *backend) stop() {
	b.in.Close()
	_ = b.cmd.Wait() // whatever it may say, the figures are in
}
