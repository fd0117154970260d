package contract

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// contract is what clients of a route see, and what is written down about them, whichever entrance they have come by.
type contract struct {
	name     string
	network  string     // tcp, the default, or udp
	handlers []object   // of the route; "upstream" and "dead" stand for the addresses of an upstream and of one where nobody listens
	upstream upstream   // nil: an echo
	clients  []play     // what the clients do, one after the other
	seen     []string   // what each of them sees, as in "hello, end"; where that depends on the machine, "nothing or reset"
	entries  []string   // of the access log, as they are written
	only     []entrance // nil: all
}

// entrance is a way of a connection to the handlers.
type entrance struct {
	name  string
	gate  string // before the network's name
	step  bool   // the first handler may be a step of the fast path
	stock bool
}

var (
	fastPath = entrance{name: "fast path", gate: "gate+", step: true}
	chain    = entrance{name: "chain", gate: "gate+"}
	// stock is layer4's own listener, whose connections goroutines move. Of UDP, docs/forward.md says what is different.
	stock = entrance{name: "stock network", stock: true}
)

// TestContract runs each case through each entrance.
func TestContract(t *testing.T) {
	for _, c := range slices.Concat(tcpContracts, proxyContracts, udpContracts, proxyUDPContracts) {
		if c.network == "" {
			c.network = "tcp"
		}
		t.Run(c.network+" "+c.name, func(t *testing.T) {
			entrances := []entrance{fastPath, chain}
			if c.network == "tcp" {
				entrances = append(entrances, stock)
			}
			if c.only != nil {
				entrances = c.only
			}
			var first outcome
			for i, in := range entrances {
				t.Run(in.name, func(t *testing.T) {
					got := c.run(t, in)
					if i == 0 {
						first = got
					}
					if !slices.Equal(got.seen, first.seen) {
						t.Errorf("the clients see %q, by the %s %q", got.seen, entrances[0].name, first.seen)
					}
					if !maps.Equal(got.counted, first.counted) {
						t.Errorf("metrics:%s", difference(got.counted, first.counted, entrances[0].name))
					}
				})
			}
		})
	}
}

// outcome is what has to be the same by all entrances, beside what a case states.
type outcome struct {
	seen    []string
	counted map[string]float64 // by how much metrics have changed
}

// run plays the case with one entrance.
func (c *contract) run(t *testing.T, in entrance) (outcome outcome) {
	s := stage{t: t, contract: c, in: in, listen: newHost() + ":" + port}
	s.start()
	accessLog.mu.Lock()
	accessLog.entries = nil
	accessLog.mu.Unlock()
	before, fast, chained := metrics(t), entered.fast.Load(), entered.chain.Load()

	for i, play := range c.clients {
		actor := &actor{stage: &s}
		play(actor)
		actor.leave()
		got := strings.Join(actor.seen, ", ")
		if !slices.Contains(strings.Split(c.seen[i], " or "), got) {
			t.Errorf("client %d sees %q, want %q", i, got, c.seen[i])
		}
		outcome.seen = append(outcome.seen, got)
	}
	s.mustLog(c.entries)
	outcome.counted = s.settled(before)
	if fast, chained = entered.fast.Load()-fast, entered.chain.Load()-chained; in.step && (fast == 0 || chained > 0) || !in.step && (chained == 0 || fast > 0) {
		t.Errorf("%d connections have taken the fast path and %d the chain, want all of them the %s", fast, chained, in.name)
	}
	return outcome
}

// stage is a run of a case.
type stage struct {
	t        *testing.T
	contract *contract
	in       entrance
	listen   string
	upstream string
	dead     string
}

func (s *stage) start() {
	s.t.Helper()
	serve := s.contract.upstream
	if serve == nil {
		serve = echo
	}
	s.upstream, s.dead = serve(s.t, s.contract.network), newHost()+":9"
	s.t.Cleanup(func() { load(s.t, nil) })
	s.load(s.contract.handlers)
}

// load makes Caddy run the case with these handlers.
func (s *stage) load(handlers []object) {
	s.t.Helper()
	route := []object{{"handler": "test_probe", "step": s.in.step}}
	for _, h := range handlers {
		h = maps.Clone(h)
		address := map[string]string{"upstream": s.upstream, "dead": s.dead}
		if to, ok := h["to"].([]string); ok {
			h["to"] = slices.Clone(to)
			for i, name := range to {
				h["to"].([]string)[i] = address[name]
			}
		}
		if upstreams, ok := h["upstreams"].([]object); ok {
			h["upstreams"] = slices.Clone(upstreams)
			for i, one := range upstreams {
				one = maps.Clone(one)
				one["address"] = address[one["address"].(string)]
				h["upstreams"].([]object)[i] = one
			}
		}
		route = append(route, h)
	}
	load(s.t, object{
		"listen": []string{s.in.gate + s.contract.network + "/" + s.listen},
		"routes": []object{{"handle": route}},
	})
}

// named replaces the addresses of this run.
func (s *stage) named(text string) string {
	if s.in.stock {
		text = strings.ReplaceAll(text, `listener=":`+port+`"`, `listener="LISTEN"`) // it does not tell more
	}
	return strings.NewReplacer(s.listen, "LISTEN", s.upstream, "UPSTREAM", s.dead, "DEAD").Replace(text)
}

// entriesNow returns the access log sorted, an entry as in "200 client_fin, to UPSTREAM, up 5, down 5". In which order sessions
// are written that end at about the same time is chance.
func (s *stage) entriesNow() (lines []string) {
	accessLog.mu.Lock()
	defer accessLog.mu.Unlock()
	for _, e := range accessLog.entries {
		line := fmt.Sprintf("%d %s", e.Status, e.Reason)
		add := func(wanted bool, format string, values ...any) {
			if wanted {
				line += fmt.Sprintf(", "+format, values...)
			}
		}
		add(!strings.HasPrefix(e.ClientIP, "127."), "from %s:%d", e.ClientIP, e.ClientPort)
		add(e.Rule != "", "rule %s", e.Rule)
		add(e.Upstream != "", "to %s", s.named(e.Upstream))
		add(e.BytesUp > 0, "up %d", e.BytesUp)
		add(e.BytesDown > 0, "down %d", e.BytesDown)
		add(e.DatagramsUp > 0, "datagrams up %d", e.DatagramsUp)
		add(e.DatagramsDown > 0, "datagrams down %d", e.DatagramsDown)
		add(e.Error != "", "error %s", s.named(reading.ReplaceAllString(e.Error, "")))
		known := e.Listener == s.listen || s.in.stock && e.Listener == ":"+port
		add(e.Network != s.contract.network || !known || e.ClientPort == 0, "client %s:%d of %s %s", e.ClientIP, e.ClientPort, e.Network, s.named(e.Listener))
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// reading is where an error tells the client's port.
var reading = regexp.MustCompile(`read tcp [^ ]+: `)

func (s *stage) mustLog(want []string) {
	s.t.Helper()
	want = slices.Sorted(slices.Values(want))
	s.eventually(func() error {
		if got := s.entriesNow(); !slices.Equal(got, want) {
			return fmt.Errorf("the access log has\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
		}
		return nil
	})
}

// settled returns what has been counted since before, once every session has ended and nothing changes any more.
func (s *stage) settled(before map[string]float64) (counted map[string]float64) {
	s.t.Helper()
	s.eventually(func() error {
		last := counted
		counted = make(map[string]float64)
		for sample, value := range metrics(s.t) {
			if !strings.HasPrefix(sample, "caddy_portgate_") || value == before[sample] || timed(sample) {
				continue
			}
			if strings.HasPrefix(sample, "caddy_portgate_sessions_active") {
				return fmt.Errorf("%s is %v", sample, value)
			}
			counted[s.named(sample)] = value - before[sample]
		}
		if last == nil || !maps.Equal(counted, last) {
			return fmt.Errorf("the metrics still change: %v", counted)
		}
		return nil
	})
	return counted
}

// timed reports whether a metric depends on how long a run takes.
func timed(sample string) bool {
	return strings.HasPrefix(sample, "caddy_portgate_ratelimit_keys") // those whose buckets are not full
}

// eventually waits until there is no error any more.
func (s *stage) eventually(check func() error) {
	s.t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < patience; time.Sleep(2 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	s.t.Error(err)
}

// patience bounds what takes no time, on a machine that may be busy.
const patience = 20 * time.Second

// difference lists the samples that two runs have not in common.
func difference(got, want map[string]float64, other string) (text string) {
	for _, sample := range slices.Sorted(maps.Keys(got)) {
		if got[sample] != want[sample] {
			text += fmt.Sprintf("\n\t%s is %v, by the %s %v", sample, got[sample], other, want[sample])
		}
	}
	for _, sample := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[sample]; !ok {
			text += fmt.Sprintf("\n\t%s is 0, by the %s %v", sample, other, want[sample])
		}
	}
	return text
}

// port is what all runs listen on, each on an address of its own.
const port = "9000"

var lastHost atomic.Uint32

// newHost returns an address of this machine on which all ports are free: no other run has it, and clients have ports of 127.0.0.1
// to 127.0.0.9.
func newHost() string {
	n := lastHost.Add(1)
	return netip.AddrFrom4([4]byte{127, 3, byte(n >> 8), byte(n)}).String()
}

// isReset reports whether the other side has reset the connection.
func isReset(err error) bool {
	return err != nil && !errors.Is(err, net.ErrClosed) && (strings.Contains(err.Error(), "reset by peer") || runtime.GOOS == "windows" && strings.Contains(err.Error(), "forcibly closed"))
}
