package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// After reloads in which listeners, upstreams, rules and limits change, the metrics have their first size within a minute. What a
// living session has stays for as long as it lives, and what the running config has goes on counting although nobody uses it.
func TestMetricsOfWhatIsGone(t *testing.T) {
	t.Parallel()
	const reloads = 15
	upstream := serve(t, echo)
	stays, limited := gate.ReserveAddr(t), gate.ReserveAddr(t)
	config := func(n int, more ...gate.Server) gate.JSON {
		acl := gate.JSON{"handler": "acl", "rules": []gate.JSON{{"deny": []string{fmt.Sprintf("127.1.0.%d", n)}}}}
		limit := gate.JSON{"handler": "rate_limit", "name": fmt.Sprint("name", n), "connections": []gate.JSON{{"rate": fmt.Sprintf("%d/s", 1000+n)}}}
		return gate.Layer4(append(more, gate.Listen(stays, gate.Forward(upstream)), gate.Listen(limited, acl, limit, gate.Forward(upstream)))...)
	}
	p := gate.Start(t, config(0))
	must(t, oneRequest(stays))
	must(t, oneRequest(limited))
	gate.Eventually(t, peerTimeout, func() error { // the client sees the end of a session before it is counted
		return equal(p.Metrics(), "caddy_portgate_sessions_total", 2)
	})
	before := make(map[string]bool)
	for sample := range p.Metrics() {
		before[sample] = true
	}
	var held, heldUpstream string
	for i := 1; i <= reloads; i++ {
		addr := gate.ReserveAddr(t)
		to := serve(t, echo)
		p.Load(config(i, gate.Listen(addr, gate.Forward(to)), gate.ListenUDP(addr, gate.Forward(serveUDP(t, echoUDP)))))
		must(t, oneRequest(addr))
		must(t, oneRequest(limited))
		if i == 1 {
			held, heldUpstream = addr, to
			mustExchange(t, dial(t, addr))
		}
	}
	if n := len(p.Metrics()); n < len(before)+reloads {
		t.Errorf("%d series, %d before", n, len(before))
	}
	p.Load(config(0))
	gate.Eventually(t, 70*time.Second, func() error {
		var left []string
		for sample := range p.Metrics() {
			if strings.HasPrefix(sample, "caddy_portgate_") && !before[sample] && !strings.Contains(sample, held) && !strings.Contains(sample, heldUpstream) {
				left = append(left, sample)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("%d series of what is gone: %q", len(left), left)
		}
		return nil
	})
	m := p.Metrics()
	must(t, equal(m, "caddy_portgate_sessions_active", 1, label("listener", held)))
	must(t, equal(m, "caddy_portgate_sessions_total", 1, label("listener", stays)))
}

// Whoever watches the process goes on to see it after a config was refused, although Caddy leaves the admin endpoint of that one in place.
func TestMetricsAfterARefusedConfig(t *testing.T) {
	t.Parallel()
	addr, upstream := gate.ReserveAddr(t), serve(t, echo)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr,
		acl("deny list bans"),
		gate.JSON{"handler": "rate_limit", "connections": []gate.JSON{{"rate": "1000/s"}}},
		gate.Forward(upstream).With("health_check", gate.JSON{"type": "tcp"}).With("breaker", gate.JSON{"when": "errors 0.5"}))))
	must(t, oneRequest(addr))
	before := p.Metrics()
	for range 2 {
		if err := p.TryLoad(gate.Layer4(gate.Listen(gate.ReserveAddr(t), gate.Forward("no port")))); err == nil {
			t.Fatal("a config with an upstream without a port was taken")
		}
		must(t, oneRequest(addr))
		after := p.Metrics()
		for sample := range before {
			if _, found := after[sample]; !found && strings.HasPrefix(sample, "caddy_portgate_") {
				t.Errorf("%s is gone", sample)
			}
		}
	}
}
