package forward

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/check"
)

// patient is an upstream that says whether it is well to whoever asks with "CHECK", and echoes anything else.
type patient struct {
	addr   string
	sick   atomic.Bool
	checks atomic.Int64
}

// ill serves a patient. Each has an address of its own, so that no other test checks it.
func ill(t *testing.T, sick bool) *patient {
	t.Helper()
	p := new(patient)
	p.sick.Store(sick)
	p.addr = serve(t, "tcp", newHost()+":0", func(conn net.Conn) {
		b := make([]byte, 5)
		n, err := io.ReadAtLeast(conn, b, 4)
		if err != nil {
			return
		}
		if string(b[:n]) == "CHECK" {
			p.checks.Add(1)
			if !p.sick.Load() {
				_, _ = io.WriteString(conn, "WELL")
			}
			return
		}
		_, _ = conn.Write(b[:n])
		_, _ = io.Copy(conn, conn)
	})
	return p
}

const asksHealth = `"health_check": {"type": "send", "send": "CHECK", "expect": "^WELL$", "interval": "1s", "timeout": "1s", "fails": %d, "passes": %d}`

// checkedBy provisions a handler that checks patients.
func checkedBy(t *testing.T, options string, patients ...*patient) (h *Handler, unload func()) {
	t.Helper()
	var to []string
	for _, p := range patients {
		to = append(to, fmt.Sprintf("%q", p.addr))
	}
	h, _, unload = provision(t, fmt.Sprintf(`{"to": [%s], %s}`, strings.Join(to, ", "), options))
	return h, unload
}

// of returns what a handler knows of a patient.
func (p *patient) of(t *testing.T, h *Handler) upstream.Report {
	t.Helper()
	report, ok := h.rosters.now.Load().pool.Health.Of(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(p.addr)))
	if !ok {
		t.Fatalf("%s is not checked", p.addr)
	}
	return report
}

// becomes waits until checks find a patient down, or up.
func (p *patient) becomes(t *testing.T, h *Handler, down bool) {
	t.Helper()
	eventually(t, func() error {
		if r := p.of(t, h); r.Down != down {
			return fmt.Errorf("%s: %+v", p.addr, r)
		}
		return nil
	})
}

// upstreamsOf makes sessions, and returns how many each upstream had.
func upstreamsOf(t *testing.T, h *Handler, k kind, sessions int) map[string]int {
	t.Helper()
	got := make(map[string]int)
	for range sessions {
		client := k.client(t, h)
		exchange(t, client, "ping")
		e := finish(t, client)
		if e.Status != 200 || e.Failed != "" {
			t.Errorf("%+v", e)
		}
		got[e.Upstream]++
	}
	return got
}

func TestUnhealthyUpstreamGetsNoSessions(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		sick, well := ill(t, true), ill(t, false)
		h, _ := checkedBy(t, fmt.Sprintf(asksHealth, 2, 2), sick, well)
		if r := sick.of(t, h); r.Down {
			t.Errorf("down before a check: %+v", r)
		}
		sick.becomes(t, h, true)
		if got := upstreamsOf(t, h, k, 10); got[well.addr] != 10 {
			t.Errorf("sessions of upstreams: %v", got)
		}
		well.sick.Store(true)
		well.becomes(t, h, true)
		if got := upstreamsOf(t, h, k, 10); got[well.addr] != 5 || got[sick.addr] != 5 {
			t.Errorf("where all are down: %v", got)
		}
		sick.sick.Store(false)
		sick.becomes(t, h, false)
		if got := upstreamsOf(t, h, k, 10); got[sick.addr] != 10 {
			t.Errorf("where one is back: %v", got)
		}
	})
}

// What checks have found out is known to the next config, also where that checks at other times, and to one that comes after a config that was
// rejected. Nobody checks what no config has.
func TestChecksOutliveReloads(t *testing.T) {
	t.Parallel()
	sick := ill(t, true)
	options := fmt.Sprintf(asksHealth, 3, 2)
	h, unload := checkedBy(t, options, sick)
	sick.becomes(t, h, true)
	since := sick.of(t, h).Since
	for range 100 {
		next, unloadNext := checkedBy(t, options, sick)
		unload()
		h, unload = next, unloadNext
		if r := sick.of(t, h); !r.Down || !r.Since.Equal(since) {
			t.Fatalf("after a reload: %+v", r)
		}
		if _, _, _, err := tryProvision(t, fmt.Sprintf(`{"to": [%q], %s}`, sick.addr, strings.Replace(options, `{"type"`, `{"tls": {"ca": ["/nowhere"]}, "type"`, 1))); err == nil {
			t.Fatal("a config without its CA is accepted")
		}
		_, rejected := checkedBy(t, options, sick)
		rejected()
	}
	if r := sick.of(t, h); !r.Down || !r.Since.Equal(since) {
		t.Errorf("after rejected configs: %+v", r)
	}
	next, unloadNext := checkedBy(t, strings.Replace(options, `"interval": "1s"`, `"interval": "1100ms"`, 1), sick)
	unload()
	if r := sick.of(t, next); !r.Down {
		t.Errorf("with another interval: %+v", r)
	}
	spec := *next.checking.spec
	unloadNext()
	checks.Each(func(other check.Spec, c *checked) bool {
		if other == spec {
			t.Error("nobody has it, and it is checked")
		}
		return true
	})
}

// Two handlers with the same checks are one.
func TestHandlersShareChecks(t *testing.T) {
	t.Parallel()
	p := ill(t, false)
	options := strings.ReplaceAll(fmt.Sprintf(asksHealth, 1000, 2), "1s", "50ms")
	var all []*Handler
	for range 20 {
		h, _ := checkedBy(t, options, p)
		all = append(all, h)
	}
	begin := time.Now()
	before := p.checks.Load()
	eventually(t, func() error {
		if n := p.checks.Load() - before; n < 20 {
			return fmt.Errorf("%d checks", n)
		}
		return nil
	})
	if d := time.Since(begin); d < 20*40*time.Millisecond { // 20 handlers of their own would take a twentieth of that
		t.Errorf("20 checks in %s", d)
	}
	for _, h := range all[1:] {
		if h.rosters.now.Load().pool.Health != all[0].rosters.now.Load().pool.Health {
			t.Error("handlers know different things")
		}
	}
}

func TestSessionsOfUnhealthyUpstreams(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		for _, test := range []struct {
			option string
			closes bool
		}{{"", false}, {`, "on_unhealthy": "keep"`, false}, {`, "on_unhealthy": "close"`, true}} {
			p, other := ill(t, false), ill(t, false)
			h, unload := checkedBy(t, fmt.Sprintf(asksHealth, 2, 1)+test.option, p, other)
			client := k.client(t, h)
			exchange(t, client, "ping") // it has the first upstream before the other one comes
			bystander := k.client(t, h)
			exchange(t, bystander, "ping")
			p.sick.Store(true)
			p.becomes(t, h, true)
			if !test.closes {
				exchange(t, client, "pong")
				exchange(t, bystander, "pong")
				p.sick.Store(false)
				_, _ = finish(t, client), finish(t, bystander)
				continue
			}
			_, _ = io.ReadAll(client)
			if e := logged(t, client); e.Reason != "unhealthy" || e.Upstream != p.addr || e.Status != 200 {
				t.Errorf("%+v", e)
			}
			exchange(t, bystander, "pong")
			// A session of a config that was replaced by one with the same checks.
			next, _ := checkedBy(t, fmt.Sprintf(asksHealth, 2, 1)+test.option, p, other)
			unload()
			exchange(t, bystander, "pong")
			other.sick.Store(true)
			other.becomes(t, next, true)
			_, _ = io.ReadAll(bystander)
			if e := logged(t, bystander); e.Reason != "unhealthy" {
				t.Errorf("%+v", e)
			}
			if at := next.rosters.now.Load().checks; len(at.sessions.at) > 0 || len(at.sessions.all) > 0 {
				eventually(t, func() error {
					at.sessions.mu.Lock()
					defer at.sessions.mu.Unlock()
					if n := len(at.sessions.at) + len(at.sessions.all); n > 0 {
						return fmt.Errorf("%d sessions are remembered", n)
					}
					return nil
				})
			}
		}
	})
}

func TestUpstreamUpIsShown(t *testing.T) {
	t.Parallel()
	p := ill(t, true)
	config := fmt.Sprintf(`{"to": [%q], %s}`, p.addr, fmt.Sprintf(asksHealth, 4, 2))
	h, ctx, _ := provision(t, config)
	p.becomes(t, h, true)
	value := func(name string) (v float64) {
		families, err := ctx.GetMetricsRegistry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		v = -1
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				for _, label := range metric.GetLabel() {
					if family.GetName() == "caddy_portgate_"+name && label.GetName() == "upstream" && label.GetValue() == p.addr {
						v = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
					}
				}
			}
		}
		return v
	}
	if up, failed := value("upstream_up"), value("upstream_checks_total"); up != 0 || failed < 4 {
		t.Errorf("upstream_up %v, upstream_checks_total %v", up, failed)
	}
	p.sick.Store(false)
	p.becomes(t, h, false)
	if up := value("upstream_up"); up != 1 {
		t.Errorf("upstream_up %v", up)
	}
}

// An upstream that checks find up again begins with a small share, where slow_start says so.
func TestUpstreamThatChecksFindUpStartsSlowly(t *testing.T) {
	t.Parallel()
	sick, well := ill(t, true), ill(t, false)
	h, _ := checkedBy(t, fmt.Sprintf(asksHealth, 2, 1)+`, "slow_start": "24h"`, sick, well)
	sick.becomes(t, h, true)
	sick.sick.Store(false)
	sick.becomes(t, h, false)
	// One of eleven is its share of a tenth.
	eventually(t, func() error {
		if got := upstreamsOf(t, h, kind{wrap: func(c *net.TCPConn) net.Conn { return c }}, 22); got[sick.addr] != 2 {
			return fmt.Errorf("sessions of upstreams: %v", got)
		}
		return nil
	})
}

// Checks begin as sessions do, with a header, which says that there is no client: a server that expects one is not taken for a dead one. One that is told
// nothing gets none, and neither does another port.
func TestChecksBeginAsSessionsDo(t *testing.T) {
	t.Parallel()
	asked := func(want string) (addr string, well <-chan struct{}) {
		passed := make(chan struct{}, 1)
		return serve(t, "tcp", newHost()+":0", func(conn net.Conn) {
			b := make([]byte, len(want))
			if _, err := io.ReadFull(conn, b); err == nil && string(b) == want {
				_, _ = io.WriteString(conn, "WELL")
				select {
				case passed <- struct{}{}:
				default:
				}
			}
		}), passed
	}
	const v2 = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	one, first := asked("PROXY UNKNOWN\r\nCHECK")
	two, second := asked(v2 + "CHECK")
	plain, third := asked("CHECK")
	other, fourth := asked("CHECK")
	options := fmt.Sprintf(asksHealth, 1, 1)
	provision(t, fmt.Sprintf(`{"to": [%q], "proxy_protocol": "v1", "upstreams": [{"address": %q, "proxy_protocol": "v2"}, {"address": %q, "proxy_protocol": "off"}], %s}`,
		one, two, plain, options))
	host, port, _ := net.SplitHostPort(other)
	provision(t, fmt.Sprintf(`{"to": [%q], "proxy_protocol": "v1", %s}`, net.JoinHostPort(host, "9"), strings.Replace(options, `{"type"`, `{"port": `+port+`, "type"`, 1)))
	for _, well := range []<-chan struct{}{first, second, third, fourth} {
		select {
		case <-well:
		case <-time.After(time.Minute):
			t.Fatal("a check has not passed")
		}
	}
}

// A server over TLS is checked over TLS, or the config says that it is not.
func TestChecksSayWhetherTheySpeakTLS(t *testing.T) {
	t.Parallel()
	const refused = "health_check: http: expected tls in its block, because sessions speak TLS with upstreams, or tls off"
	for check, want := range map[string]string{
		`{"type": "http", "path": "/"}`:                       refused,
		`{"type": "http", "path": "/", "tls": {}}`:            "",
		`{"type": "http", "path": "/", "tls": {"off": true}}`: "",
		`{"type": "http", "path": "/", "port": 8080}`:         "",
		`{"type": "tcp", "interval": "7s"}`:                   "",
	} {
		for _, config := range []string{
			`{"to": [%q], "tls": {"insecure_skip_verify": true}, "health_check": %s}`,
			`{"upstreams": [{"address": %q, "tls": {"insecure_skip_verify": true}}], "health_check": %s}`,
		} {
			_, _, unload, err := tryProvision(t, fmt.Sprintf(config, refuses(), check))
			unload()
			if err == nil && want != "" || err != nil && !strings.Contains(err.Error(), refused) || err != nil && want == "" {
				t.Errorf("%s: %v, want %q", check, err, want)
			}
		}
	}
}
