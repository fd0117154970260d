package forward

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/check"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// checking is how a handler has its upstreams checked, as configured. The zero value is not at all.
type checking struct {
	spec   *check.Spec
	tls    *TLS // nil: none
	closes bool // sessions of upstreams that checks have taken out

	streams, datagrams bool     // what sessions are
	told               *special // what upstreams are told before a check; nil: nothing
}

// begin has checks be made as sessions are: from their source addresses, with streams, datagrams or both.
func (c *checking) begin(sources []netip.Addr, as *shownAs) {
	c.streams, c.datagrams = as.streams, as.datagrams
	if c.spec == nil {
		return
	}
	all := make([]string, len(sources))
	for i, ip := range sources {
		all[i] = ip.String()
	}
	c.spec.Sources = strings.Join(all, " ")
}

// tell has checks begin with a header where sessions do: a server that expects one refuses all else. A check of another port, or over another
// network, goes to a server of which nothing is known.
func (c *checking) tell(s *special) {
	if c.told = nil; c.spec == nil || c.spec.Port != 0 || c.spec.Kind == check.TCP && c.spec.TLS == "" {
		return
	}
	overDatagrams := c.spec.Kind == check.UDP || c.spec.Kind == check.DNS && c.datagrams
	overStreams := c.spec.Kind != check.UDP
	if !s.versions[1] && !s.versions[2] || !(overDatagrams && c.datagrams || overStreams && c.streams) {
		return
	}
	c.told = s
	all := []byte(strconv.Itoa(int(s.common.preface.version)))
	for _, name := range slices.Sorted(maps.Keys(s.own)) {
		all = fmt.Appendf(all, " %q %d", name, s.own[name].preface.version)
	}
	c.spec.Prefaces = string(all)
}

// preface returns what an upstream is told before a check.
func (c *checking) preface(name string) []byte {
	if c.told == nil {
		return nil
	}
	return c.told.of(name).preface.ofNobody()
}

// checker makes the checks of all handlers.
type checker struct{ *check.Checker }

// Destruct ends its goroutines.
func (c *checker) Destruct() error {
	c.Close()
	return nil
}

// checkers has the one that there is, while anything is checked.
var checkers = state.NewPool[struct{}, *checker]()

// The most checks that are under way at the same time: a part of the descriptors that the process may have open.
const (
	leastChecks = 16
	mostChecks  = 4096
	checksPart  = 16
)

// checks of all configs, by what is checked. They outlive the configs, so a reload forgets nothing.
var checks = state.NewPool[check.Spec, *checked]()

// checked is what handlers with the same checks share.
type checked struct {
	*check.Group
	checker  *state.Ref[*checker]
	files    *state.Ref[*identity] // nil where there are none
	sessions tenants

	mu      sync.Mutex
	notMade time.Time      // when a check could last not be made
	part    *degraded.Part // nil where all were
}

var (
	checksTotal = meter.Counter("upstream_checks_total", "Health checks of an upstream that are over.", "upstream", "result")
	upstreamUp  = upNow{meter.Desc("upstream_up", "Whether health checks find an address of an upstream up: 1, or 0 where all are down.", "upstream")}
)

// upNow makes a metric of what is known, whenever it is read.
type upNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (u upNow) Describe(to chan<- *prometheus.Desc) { to <- u.desc }

// Collect implements [prometheus.Collector]. Of an upstream with several kinds of checks all have to find it up.
func (u upNow) Collect(to chan<- prometheus.Metric) {
	up := make(map[string]float64)
	checks.Each(func(_ check.Spec, c *checked) bool {
		c.Each(func(name string, is bool) {
			if _, known := up[name]; !known {
				up[name] = 1
			}
			if !is {
				up[name] = 0
			}
		})
		return true
	})
	for name, value := range up {
		to <- prometheus.MustNewConstMetric(u.desc, prometheus.GaugeValue, value, name)
	}
}

func newChecked(spec check.Spec, t *TLS) (_ *checked, err error) {
	c := new(checked)
	defer func() {
		if err != nil {
			_ = c.Destruct()
		}
	}()
	if t != nil {
		if files := t.identityFiles(); files != (identityFiles{}) {
			if c.files, err = holdIdentity(files); err != nil {
				return nil, err
			}
		}
	}
	c.checker, err = checkers.Acquire(struct{}{}, func() (*checker, error) {
		return &checker{check.NewChecker(min(max(descriptors.Limit()/checksPart, leastChecks), mostChecks))}, nil
	})
	if err != nil {
		return nil, err
	}
	c.Group, err = check.NewGroup(c.checker.Value().Checker, spec, func(host string) func() *tls.Config { return c.speak(t, host) }, c.tell)
	return c, err
}

// Destruct ends the checks, which nobody wants any more.
func (c *checked) Destruct() error {
	_ = c.checker.Release()
	_ = c.files.Release()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.part != nil {
		c.part.Close()
	}
	return nil
}

// speak returns what knows how TLS is spoken with upstreams of a host.
func (c *checked) speak(t *TLS, host string) func() *tls.Config {
	name := t.ServerName
	if name == "" {
		name = withoutZone(host)
	}
	var files *identity
	if c.files != nil {
		files = c.files.Value()
	}
	return newEncryption(t, caddy.NewReplacer().ReplaceKnown(name, ""), files).config
}

// holdChecks has upstreams of a roster checked, until it ends.
func (r *roster) holdChecks(checking *checking, stale time.Duration, upstreams []upstream.Upstream) error {
	if checking.spec == nil {
		return nil
	}
	ref, err := checks.Acquire(*checking.spec, func() (*checked, error) { return newChecked(*checking.spec, checking.tls) })
	if err != nil {
		return err
	}
	c := ref.Value()
	r.pool.Health, r.checks = c.Health(), c
	down := c.knownDown()
	var names *upstream.Names
	if r.known != nil {
		names = r.known.Value().Names
	}
	for i := range upstreams {
		u := &upstreams[i]
		if u.Dynamic || u.Maint {
			continue
		}
		for _, datagrams := range [...]bool{false, true} {
			if datagrams && !checking.datagrams || !datagrams && !checking.streams || u.Addr.Carries(datagrams) != nil {
				continue
			}
			r.watched = append(r.watched, c.Hold(check.Wanted{
				Name: u.Name, Addr: u.Addr, Datagrams: datagrams, Names: names, Stale: stale, Down: down, Preface: checking.preface(u.Name),
			}))
		}
	}
	r.watched = append(r.watched, ref)
	return nil
}

// knownDown tells which addresses other checks have found down that do the same at other times: those of a config in which only an interval was
// another one.
func (c *checked) knownDown() func(net.Addr) bool {
	var down map[upstream.CheckKey]struct{}
	checks.Each(func(spec check.Spec, other *checked) bool {
		if other == c || spec.Probe != c.Spec().Probe {
			return true
		}
		for _, addr := range other.Health().Down() {
			if down == nil {
				down = make(map[upstream.CheckKey]struct{})
			}
			down[c.Health().KeyOf(addr)] = struct{}{}
		}
		return true
	})
	return func(addr net.Addr) bool {
		_, is := down[c.Health().KeyOf(addr)]
		return is
	}
}

// tell counts a check. What has changed is logged, and sessions are closed whose handler wants that.
func (c *checked) tell(r check.Result) {
	checksTotal.WithLabelValues(r.Upstream, string(r.Outcome)).Inc()
	c.noteMade(&r)
	if !r.Changed {
		return
	}
	log, fields := logqueue.Default("forward"), []zap.Field{zap.String("upstream", r.Upstream), zap.Stringer("address", r.Addr), zap.String("check", c.Spec().Kind)}
	if !r.Report.Down {
		for _, addr := range r.Back {
			forgetFailures(addr)
			returns.Address(addr)
		}
		events.Report(log, events.UpstreamUp, events.Info, "upstream is up", append(fields, zap.Duration("was_down", r.Lasted))...)
		return
	}
	closed := c.sessions.close(c.Health().KeyOf(r.Addr))
	events.Report(log, events.UpstreamDown, events.Warn, "upstream is down, sessions try others first",
		append(fields, zap.Int("fails", r.Report.Fails), zap.Int("sessions_closed", closed), zap.Error(r.Err))...)
}

// forgetFailures has sessions go to an address at once that a check has found up again, whatever they have found out before.
func forgetFailures(addr net.Addr) {
	memories.Each(func(_ memoryKey, m remembered) bool {
		m.Works(addr)
		return true
	})
}

// noteMade says that checks can't be made, and when that is over.
func (c *checked) noteMade(r *check.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.Outcome == check.NotMade:
		c.notMade = time.Now()
		if c.part == nil {
			c.part = degraded.New("health_check")
		}
		c.part.Begin(logqueue.Default("forward"), "health checks can't be made, upstreams are taken for what they were", zap.String("check", c.Spec().Kind), zap.Error(r.Err))
	case c.part != nil && time.Since(c.notMade) >= missingFor:
		c.part.End(logqueue.Default("forward"), "health checks can be made again", zap.String("check", c.Spec().Kind))
		c.part.Close()
		c.part = nil
	}
}
