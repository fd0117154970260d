package forward

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/hops"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

const (
	maxPreconnect  = 1000
	defaultMaxIdle = 30 * time.Second
)

// Preconnect has connections to upstreams kept ready.
type Preconnect struct {
	// Count is how many are kept ready to each upstream. From 1 to 1000.
	Count int `json:"count"`

	// MaxIdle is how long one is kept before another takes its place. It must be shorter than the time after which the server closes
	// connections that say nothing. More than 0. Default: 30s.
	MaxIdle *caddy.Duration `json:"max_idle,omitempty"`
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (p *Preconnect) UnmarshalJSON(data []byte) error {
	type options Preconnect
	return caddyfile.UnmarshalJSON(data, (*options)(p))
}

func (p *Preconnect) check() error {
	switch {
	case p == nil:
	case p.Count < 1 || p.Count > maxPreconnect:
		return fmt.Errorf(`count: "%d": expected a whole number from 1 to %d`, p.Count, maxPreconnect)
	case p.MaxIdle != nil && *p.MaxIdle == 0:
		return fmt.Errorf("max_idle: %w", errNoTime("0s"))
	}
	return nil
}

// preconnectOption is the option in a Caddyfile.
func (h *Handler) preconnectOption() caddyfile.Option {
	return caddyfile.Option{
		Name: "preconnect", Min: 1, Max: 1,
		Set: func(args []string) (err error) {
			h.Preconnect = new(Preconnect)
			h.Preconnect.Count, err = caddyfile.ParseCount(args[0], 1, maxPreconnect)
			return err
		},
		Block: []caddyfile.Option{value("max_idle", func(arg string) error {
			parsed, err := caddyfile.ParseDuration(arg)
			h.Preconnect.MaxIdle = &parsed
			if err == nil && parsed == 0 {
				err = errNoTime(arg)
			}
			return err
		})},
	}
}

// checkPreconnect refuses it where only datagrams are accepted.
func (h *Handler) checkPreconnect(listen []caddy.NetworkAddress) error {
	takesStreams := func(addr caddy.NetworkAddress) bool { return !gate.Datagrams(addr.Network) }
	if h.Preconnect == nil || len(listen) == 0 || slices.ContainsFunc(listen, takesStreams) {
		return nil
	}
	return fmt.Errorf("preconnect: expected a listen address of TCP, but there is only %q", listen[0].String())
}

// checkKept refuses upstreams to which no connection can be kept ready.
func checkKept(u *upstream.Upstream) error {
	switch {
	case u.Dynamic:
		return fmt.Errorf("%q: expected an address without a placeholder, because connections are made before there is a session", u.Name)
	case u.Addr.Ports() > 1:
		return fmt.Errorf("%q: expected one port, because connections are made before it is known to which of a range", u.Name)
	}
	return nil
}

// keepers of all configs: a reload with the same options leaves them as they are.
var keepers = state.NewPool[keeperKey, *keeper]()

// keeperKey is what a connection that is kept depends on.
type keeperKey struct {
	upstream, sources, tls string
	count, reserve         int
	maxIdle, connect       time.Duration
}

// keeper keeps connections to one upstream.
type keeper struct {
	*relay.Keeper
	upstream    string
	speaksFirst *degraded.Part
}

// Destruct closes the connections.
func (k *keeper) Destruct() error {
	k.Close()
	k.speaksFirst.Close()
	return nil
}

var (
	keptTotal = meter.Counter("upstream_kept_total", "Connections to an upstream that were kept ready, or could not be made, by what became of them.", "upstream", "result")
	keptReady = keptNow{meter.Desc("upstream_connections_kept", "Connections to an upstream that are kept ready.", "upstream")}
)

// keptNow makes a metric of what is kept, whenever it is read.
type keptNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (k keptNow) Describe(to chan<- *prometheus.Desc) { to <- k.desc }

// Collect implements [prometheus.Collector].
func (k keptNow) Collect(to chan<- prometheus.Metric) {
	now := make(map[string]int)
	keepers.Each(func(key keeperKey, one *keeper) bool {
		now[key.upstream] += one.Ready()
		return true
	})
	for name, n := range now {
		to <- prometheus.MustNewConstMetric(k.desc, prometheus.GaugeValue, float64(n), name)
	}
}

// holdKeeper returns a reference to what keeps connections to an upstream of the roster.
func (r *roster) holdKeeper(h *Handler, position int, m *means) (*state.Ref[*keeper], error) {
	u := r.pool.At(position)
	key := keeperKey{
		upstream: u.Name, sources: strings.Join(h.Source, " "), count: h.Preconnect.Count, reserve: h.uncounted.reserve,
		maxIdle: defaultMaxIdle, connect: h.limits.Connect,
	}
	override(&key.maxIdle, h.Preconnect.MaxIdle)
	cfg := relay.KeeperConfig{
		Count: key.count, MaxIdle: key.maxIdle, Connect: key.connect, Addrs: r.pool.Addrs(position), Local: h.from,
		Track: func() relay.Tracker { return keptTracker{hops.Keep()} }, Spare: keptSpare{key.reserve},
	}
	if m.tls != nil && m.preface.version == 0 { // else the header of a session comes before the handshake
		cfg.Wrap, key.tls = m.tls.wrap, m.tls.written
	}
	return keepers.Acquire(key, func() (*keeper, error) {
		k := &keeper{upstream: u.Name, speaksFirst: degraded.New("preconnect")}
		for _, fate := range []relay.Fate{relay.KeptUsed, relay.KeptClosed, relay.KeptExpired, relay.KeptSpoke, relay.KeptFailed} {
			keptTotal.WithLabelValues(u.Name, string(fate)) // begin at 0
		}
		cfg.Report = k.report
		countLoops()
		k.Keeper = relay.NewKeeper(cfg)
		return k, nil
	})
}

// report counts what has become of a connection. Event loops call it.
func (k *keeper) report(fate relay.Fate, addr net.Addr) {
	keptTotal.WithLabelValues(k.upstream, string(fate)).Inc()
	log := func() *zap.Logger {
		return logqueue.Default("forward").With(zap.String("upstream", k.upstream), zap.Stringer("address", addr))
	}
	switch fate {
	case relay.KeptSpoke:
		k.speaksFirst.Begin(log(), "an upstream sends something before it is asked, so no connections to it are kept ready")
	case relay.KeptUsed:
		if k.speaksFirst.Is() {
			k.speaksFirst.End(log(), "connections to an upstream are kept ready again")
		}
	}
}

// keptSpare has the descriptors of connections that are kept. Sessions need them more: twice the reserve is left.
type keptSpare struct{ reserve int }

func (s keptSpare) Take() bool { return descriptors.Take(1, 2*s.reserve) }
func (keptSpare) Release()     { descriptors.Release(1) }

// keptTracker tells hops of a socket that is connected before its session begins.
type keptTracker struct{ trip *hops.Trip }

func (t keptTracker) Connecting(remote netip.AddrPort) relay.TrackedSocket {
	if s := t.trip.Connecting(remote); s != nil {
		return keptSocket{s}
	}
	return nil
}

func (t keptTracker) ConnectingUnix() (string, relay.TrackedSocket) {
	if name, s := t.trip.ConnectingUnix(); s != nil {
		return name, keptSocket{s}
	}
	return "", nil
}

// keptSocket is a socket of it.
type keptSocket struct{ *hops.Socket }

// TakenBy implements [relay.KeptSocket].
func (s keptSocket) TakenBy(t relay.Tracker) {
	if session, ok := t.(tracker); ok {
		s.MoveTo(session.Trip)
	}
}

// Interface guard
var _ json.Unmarshaler = (*Preconnect)(nil)
