package integration

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// third is the one of three upstreams that fails: HAProxy, on a machine of its own.
type third struct {
	t    *testing.T
	far  namespace
	addr string
	cmd  *exec.Cmd
}

func startThird(t *testing.T) *third {
	t.Helper()
	far := newNamespace(t)
	u := &third{t: t, far: far, addr: net.JoinHostPort(far.inside, fmt.Sprint(gate.ReservePort(t)))}
	u.start()
	return u
}

func (u *third) start() {
	u.cmd = webHAProxy(u.t, u.addr, "third", program(u.t, "ip"), "netns", "exec", u.far.name)
}

func (u *third) nft(rules string) {
	run(u.t, program(u.t, "ip"), "netns", "exec", u.far.name, program(u.t, "nft"), rules)
}

// callers ask for a page again and again, in a new session each time.
type callers struct {
	stop     chan struct{}
	done     sync.WaitGroup
	mu       sync.Mutex
	took     []time.Duration
	answers  map[string]int
	failures []error
}

func callAgain(addr string, count int) *callers {
	v := &callers{stop: make(chan struct{}), answers: make(map[string]int)}
	for range count {
		v.done.Go(func() {
			for {
				began := time.Now()
				page, err := getPage(addr)
				v.mu.Lock()
				v.took = append(v.took, time.Since(began))
				v.answers[page]++
				if err != nil {
					v.failures = append(v.failures, err)
				}
				v.mu.Unlock()
				select {
				case <-v.stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
	return v
}

// wait until there have been so many visits since it was called.
func (v *callers) wait(t *testing.T, n int) {
	t.Helper()
	made := func() int {
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.took)
	}
	began := made()
	gate.Eventually(t, connTimeout, func() error {
		if now := made(); now < began+n {
			return fmt.Errorf("%d of %d visits were made", now-began, n)
		}
		return nil
	})
}

// end returns the 99th percentile of how long a visit took.
func (v *callers) end() time.Duration {
	close(v.stop)
	v.done.Wait()
	slices.Sort(v.took)
	return percentile(v.took, 99)
}

// One of three upstreams refuses, hangs, or vanishes. Where sessions can be retried none fails. Once checks have found out, no client waits for it,
// and when it is back it takes its share again, in the time of slow_start. A hundred reloads meanwhile change nothing of that.
func TestOneOfThreeUpstreamsFails(t *testing.T) {
	const atOnce = 4
	for name, failure := range map[string]struct {
		begin, end func(u *third)
	}{
		"refuses": {
			begin: func(u *third) {
				_ = u.cmd.Process.Kill()
				gate.Eventually(u.t, peerTimeout, func() error {
					if conn, err := net.DialTimeout("tcp", u.addr, peerTimeout); err == nil {
						conn.Close()
						return fmt.Errorf("%s still accepts", u.addr)
					}
					return nil
				})
			},
			end: (*third).start,
		},
		"hangs": {
			begin: func(u *third) { must(u.t, u.cmd.Process.Signal(syscall.SIGSTOP)) },
			end:   func(u *third) { must(u.t, u.cmd.Process.Signal(syscall.SIGCONT)) },
		},
		"vanishes": {
			begin: func(u *third) {
				u.nft("add table inet gate; add chain inet gate in { type filter hook input priority 0; policy drop; }")
			},
			end: func(u *third) { u.nft("delete table inet gate") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := gate.ReserveAddr(t), gate.ReserveAddr(t)
			webHAProxy(t, first, "first")
			webHAProxy(t, second, "second")
			u := startThird(t)
			addr := gate.ReserveAddr(t)
			config := func(round int) gate.JSON {
				return gate.Layer4(gate.Listen(addr, gate.Forward(first, second, u.addr).
					With("health_check", gate.JSON{"type": "http", "path": "/", "interval": "200ms", "timeout": "200ms", "fails": 5, "passes": 2}).
					With("connect_timeout", "500ms").With("slow_start", "2s").With("idle_timeout", fmt.Sprintf("%ds", 600+round%2))))
			}
			p := gate.Start(t, config(0), gate.WithoutRace())
			mustBeUp(t, p, u.addr, true)
			before := callAgain(addr, atOnce)
			before.wait(t, 600)
			p99 := before.end()
			mustShare(t, before, "third")

			stop := reloadAgainAndAgain(t, p, config)
			until := callAgain(addr, atOnce)
			failure.begin(u)
			mustBeUp(t, p, u.addr, false)
			fails := label("upstream", u.addr)
			tried := p.Metrics().Sum("caddy_portgate_upstream_fails_total", fails)
			after := callAgain(addr, atOnce)
			after.wait(t, 600)
			p99After := after.end()
			if n := after.answers["third"]; n > 0 || len(after.failures) > 0 {
				t.Errorf("once checks had found out: %d answers of the one that fails, %d visits failed, such as %v", n, len(after.failures), after.failures)
			}
			if now := p.Metrics().Sum("caddy_portgate_upstream_fails_total", fails); now > tried+atOnce { // those under way when the checks found out
				t.Errorf("%v sessions have tried it since checks had found out", now-tried)
			}
			t.Logf("p99 of a visit: %v before, %v once checks had found out", p99, p99After)

			failure.end(u)
			mustBeUp(t, p, u.addr, true)
			must(t, equal(p.Metrics(), "caddy_portgate_upstream_ejected", 0, label("upstream", u.addr))) // the check has the last word
			reloads := stop(100)
			until.end()
			if len(until.failures) > atOnce { // those that had their answer under way when it failed
				t.Errorf("%d of %d visits failed: %v", len(until.failures), len(until.took), until.failures)
			}
			gate.Eventually(t, peerTimeout, func() error { return stateOf(p, u.addr, "up") }) // not slow_start any more
			again := callAgain(addr, atOnce)
			again.wait(t, 600)
			again.end()
			mustShare(t, again, "third")
			t.Logf("%d reloads; %d visits meanwhile", reloads, len(until.took))
			gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_upstream_sessions_active", 0) })
		})
	}
}

// mustShare requires that an upstream has answered a third of the visits.
func mustShare(t *testing.T, v *callers, name string) {
	t.Helper()
	if got, want := v.answers[name], len(v.took)/3; got < want*9/10-5 || got > want*11/10+5 || len(v.failures) > 0 {
		t.Errorf("%s has answered %d of %d visits: %v; failures: %v", name, got, len(v.took), v.answers, v.failures)
	}
}

func stateOf(p *gate.Process, upstream, state string) error {
	answer, err := p.Get("/portgate/upstreams?state=" + state + "&name=" + upstream)
	if err != nil {
		return err
	}
	if !strings.Contains(answer, `"name":"`+upstream+`"`) {
		return fmt.Errorf("%s is not %q: %s", upstream, state, answer)
	}
	return nil
}

// reloadAgainAndAgain reloads until it is stopped, which waits for so many reloads.
func reloadAgainAndAgain(t *testing.T, p *gate.Process, config func(round int) gate.JSON) (stop func(atLeast int64) int64) {
	var rounds, want atomic.Int64
	want.Store(1 << 62)
	done := make(chan error, 1)
	go func() {
		var err error
		for err == nil && rounds.Load() < want.Load() {
			err = p.TryLoad(config(int(rounds.Add(1))))
			<-time.After(20 * time.Millisecond) // others want the processor, too
		}
		done <- err
	}()
	return func(atLeast int64) int64 {
		want.Store(max(atLeast, rounds.Load()))
		must(t, <-done)
		return rounds.Load()
	}
}
