package forward

import (
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// discovered is a source of upstreams that all handlers and configs with the same options share, so that it is asked once, and a reload begins
// with what is known.
type discovered struct {
	name    string
	asked   asked
	keeper  *discovery.Keeper
	storage state.Youngest[certmagic.Storage]
	copy    storedCopy

	failing, bad *degraded.Part
	failures     atomic.Int64
	badNow       atomic.Int64
}

// discoveries has the sources of all configs, by the options of their modules.
var discoveries = newSources()

// openSource begins to ask a source.
func openSource(asked asked, made discovery.Made, storage certmagic.Storage) *discovered {
	d := &discovered{name: made.Name, asked: asked, failing: degraded.New("upstream_source"), bad: degraded.New("upstream_entries")}
	d.storage.Use(storage)
	grace := made.GracePeriod
	if grace == 0 {
		grace = discovery.DefaultGracePeriod
	}
	d.copy.begin(d, grace)
	before, begin := discoveries.known(asked)
	if before != nil {
		d.log().Info("a source of upstreams begins with what the one before it knows", zap.Int("upstreams", len(begin.Entries)))
	}
	d.keeper = discovery.Keep(made.Source, discovery.KeeperConfig{
		GracePeriod: grace,
		Begin:       begin,
		Stored:      d.copy.load,
		Good:        d.good,
		Failed:      d.failed,
		Restored:    d.restored,
		Expired:     d.expired,
	})
	discoveries.add(d)
	return d
}

// Destruct ends the asking.
func (d *discovered) Destruct() error {
	discoveries.remove(d)
	d.keeper.Close()
	d.copy.end()
	d.failing.Close()
	d.bad.Close()
	return nil
}

func (d *discovered) log() *zap.Logger {
	return logqueue.Default("forward").With(zap.String("source", d.name))
}

func (d *discovered) good(kept discovery.Kept, changed bool) {
	d.failing.End(d.log(), "upstreams are discovered again", zap.Int("upstreams", len(kept.Entries)))
	if changed {
		d.log().Info("upstreams discovered", zap.Int("upstreams", len(kept.Entries)))
	}
	d.noteBad(kept.Answer)
	d.copy.keep(kept, changed)
}

// noteBad says what was left out, whenever that are more or fewer.
func (d *discovered) noteBad(answer discovery.Answer) {
	before := d.badNow.Swap(int64(answer.Bad))
	if answer.Bad == 0 {
		d.bad.End(d.log(), "all entries of a source of upstreams make sense again")
		return
	}
	const message = "a source of upstreams has entries that make no sense, which are left out"
	first := make([]string, len(answer.First))
	for i, err := range answer.First {
		first[i] = err.Error()
	}
	fields := []zap.Field{zap.Int("bad", answer.Bad), zap.Int("upstreams", len(answer.Entries)), zap.Strings("first", first)}
	if d.bad.Is() && before != int64(answer.Bad) {
		d.log().Info(message, fields...)
	}
	d.bad.Begin(d.log(), message, fields...)
}

func (d *discovered) failed(err error, state discovery.State) {
	d.failures.Add(1)
	if !state.Known {
		d.failing.Begin(d.log(), "upstreams can't be discovered, and nothing is known of earlier: sessions that have no others are refused", zap.Error(err))
		return
	}
	d.failing.Begin(d.log(), "upstreams can't be discovered, the last good answer is used", zap.Int("upstreams", len(state.Entries)),
		zap.Duration("age", time.Since(state.Confirmed)), zap.Error(err))
}

func (d *discovered) restored(kept discovery.Kept) {
	d.log().Info("upstreams are those that an earlier process has stored", zap.Int("upstreams", len(kept.Entries)), zap.Time("confirmed", kept.Confirmed))
}

func (d *discovered) expired(err error) {
	d.log().Warn("the last good answer of a source of upstreams is older than grace_period: it is used only where there are no other upstreams", zap.Error(err))
}

// useOfSource is what a handler holds of a source.
type useOfSource struct {
	ref      *state.Ref[*discovered]
	follower *discovery.Follower
	gone     func()
}

// useSource has changed called whenever the source that a module describes knows other upstreams.
func useSource(ctx caddy.Context, module caddy.Module, changed func()) (useOfSource, error) {
	made, err := module.(discovery.Maker).Source()
	if err != nil {
		return useOfSource{}, err
	}
	options, err := json.Marshal(module)
	if err != nil {
		return useOfSource{}, err
	}
	kind := string(module.CaddyModule().ID)
	key := kind + " " + string(options)
	question := asked{what: key}
	if made.Question != "" {
		question = asked{kind + " " + made.Question, made.Whom}
	}
	ref, err := discoveries.Acquire(key, func() (*discovered, error) { return openSource(question, made, ctx.Storage()), nil })
	if err != nil {
		return useOfSource{}, err
	}
	d := ref.Value()
	return useOfSource{ref, d.keeper.Follow(changed), d.storage.Use(ctx.Storage())}, nil
}

func (u *useOfSource) end() {
	u.follower.Leave()
	u.gone()
	_ = u.ref.Release()
}

func (u *useOfSource) state() discovery.State { return u.ref.Value().keeper.State() }

// sourceMetrics makes metrics of what is known of the sources, whenever they are read.
type sourceMetrics struct{ upstreams, bad, failing, failures, confirmed *prometheus.Desc }

var ofSources = sourceMetrics{
	upstreams: meter.Desc("upstream_source_upstreams", "Upstreams that a source knows.", "source"),
	bad:       meter.Desc("upstream_source_bad_entries", "Entries of a source that make no sense, and are left out.", "source"),
	failing:   meter.Desc("upstream_source_failing", "Whether a source fails now, so that its last good answer is used.", "source"),
	failures:  meter.Desc("upstream_source_failures_total", "How often a source could not answer.", "source"),
	confirmed: meter.Desc("upstream_source_last_success_timestamp_seconds", "When a source has answered last.", "source"),
}

// Describe implements [prometheus.Collector].
func (m sourceMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.upstreams, m.bad, m.failing, m.failures, m.confirmed} {
		to <- desc
	}
}

// Collect implements [prometheus.Collector]. Of several sources with one name, as while a reload changes its options, the values are added.
func (m sourceMetrics) Collect(to chan<- prometheus.Metric) {
	type sums struct{ upstreams, bad, failing, failures, confirmed float64 }
	all := make(map[string]sums)
	discoveries.Each(func(_ string, d *discovered) bool {
		s, state := all[d.name], d.keeper.State()
		s.upstreams += float64(len(state.Entries))
		s.bad += float64(d.badNow.Load())
		s.failures += float64(d.failures.Load())
		if state.Err != nil {
			s.failing++
		}
		if state.Known {
			s.confirmed = max(s.confirmed, float64(state.Confirmed.UnixMilli())/1000)
		}
		all[d.name] = s
		return true
	})
	for name, s := range all {
		to <- prometheus.MustNewConstMetric(m.upstreams, prometheus.GaugeValue, s.upstreams, name)
		to <- prometheus.MustNewConstMetric(m.bad, prometheus.GaugeValue, s.bad, name)
		to <- prometheus.MustNewConstMetric(m.failing, prometheus.GaugeValue, s.failing, name)
		to <- prometheus.MustNewConstMetric(m.failures, prometheus.CounterValue, s.failures, name)
		to <- prometheus.MustNewConstMetric(m.confirmed, prometheus.GaugeValue, s.confirmed, name)
	}
}
