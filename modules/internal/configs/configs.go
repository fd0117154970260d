// Package configs knows how loading configs has fared: how many took the place of another one, and how many were rejected. Caddy does not tell
// modules of it, but it ends the context of a config with a cause, which is an error of the config where that was rejected.
//
// So a rejected config is known if anything of Portgate was provisioned for it, as the admin API is before all apps. One that Caddy can't read, or
// whose logs, storage or admin endpoint can't be had, is not.
package configs

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// Reloads is how loading configs has fared since the process began. The first config is not counted.
type Reloads struct {
	Success, Failure int64
	LastError        string    // of the last one, where it was rejected
	Loaded           time.Time // when the running config was loaded; zero where none runs
}

// configs is what is known.
type configs struct {
	mu      sync.Mutex
	reloads Reloads
	running context.Context            // of the config that Loaded is of
	watched map[<-chan struct{}]uint64 // numbered in the order in which they came
	last    uint64
}

var known = &configs{watched: make(map[<-chan struct{}]uint64)}

// Now returns how loading configs has fared.
func Now() Reloads {
	known.mu.Lock()
	defer known.mu.Unlock()
	known.lookLocked()
	return known.reloads
}

// lookLocked finds out whether another config runs.
func (c *configs) lookLocked() {
	config := caddy.ActiveContext()
	switch {
	case config.Context == nil:
		c.running, c.reloads.Loaded = nil, time.Time{}
	case config.Context != c.running:
		c.running, c.reloads.Loaded = config.Context, loadedAt()
	}
}

// Watch notes how a config fares. Whatever module is in every config with anything of Portgate calls it in Provision; further calls for a config do
// nothing.
func Watch(ctx caddy.Context) {
	key := ctx.Done()
	known.mu.Lock()
	_, again := known.watched[key]
	if !again {
		known.last++
		known.watched[key] = known.last
	}
	known.mu.Unlock()
	if again {
		return
	}
	context.AfterFunc(ctx.Context, func() { known.ended(ctx.Context) })
}

// Rejected returns why a config that has ended never ran, nil where it did.
func Rejected(config context.Context) error { return errors.Unwrap(context.Cause(config)) }

func (c *configs) ended(config context.Context) {
	c.mu.Lock()
	number := c.watched[config.Done()]
	delete(c.watched, config.Done())
	c.mu.Unlock()
	if err := Rejected(config); err != nil {
		c.rejected(number, caddyfile.WithoutPasswords(err))
		return
	}
	// Whatever ends without a cause was no config, and what no other config follows is the end of the process.
	if errors.Is(context.Cause(config), context.Canceled) || caddy.ActiveContext().Context == nil {
		return
	}
	c.mu.Lock()
	c.reloads.Success++
	c.reloads.LastError = ""
	c.mu.Unlock()
	events.Emit(events.Reload, events.Info, "another config was loaded")
}

// maxError bounds an error that is shown.
const maxError = 2000

func (c *configs) rejected(number uint64, err error) {
	text := err.Error()
	if len(text) > maxError {
		text = text[:maxError] + "..."
	}
	c.mu.Lock()
	c.reloads.Failure++
	if !c.hasLaterLocked(number) { // else that one says how the last one has fared: configs that end in short order may get here in another one
		c.reloads.LastError = text
	}
	c.mu.Unlock()
	events.Emit(events.ConfigRejected, events.Error, "a config was rejected, the one before goes on", zap.String("error", text))
}

func (c *configs) hasLaterLocked(number uint64) bool {
	for _, other := range c.watched {
		if other > number {
			return true
		}
	}
	return false
}

// loadedAt asks Caddy, which has it in a metric.
func loadedAt() time.Time {
	nothing, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	families, _ := nothing.GetMetricsRegistry().Gather()
	for _, family := range families {
		if family.GetName() == "caddy_config_last_reload_success_timestamp_seconds" {
			if at := family.GetMetric()[0].GetGauge().GetValue(); at > 0 {
				return time.UnixMilli(int64(at * 1000))
			}
		}
	}
	return time.Now()
}

// Version is that of this module, as it was built in.
var Version = sync.OnceValue(func() string {
	const path = "github.com/portgate/caddy-portgate"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range append(info.Deps, &info.Main) {
		for ; module != nil && module.Path == path; module = module.Replace {
			if module.Replace == nil {
				return cmp.Or(module.Version, "unknown")
			}
		}
	}
	return "unknown"
})

// CaddyVersion is that of Caddy.
var CaddyVersion = sync.OnceValue(func() string {
	simple, _ := caddy.Version()
	return simple
})

// metrics are made whenever they are read.
type metrics struct{ build, reloads, loaded *prometheus.Desc }

var collectors = metrics{
	build:   meter.Desc("build_info", "Always 1; the labels say what runs.", "version", "caddy_version", "go_version"),
	reloads: meter.Desc("config_reloads_total", "Configs that took the place of another one, or were rejected.", "result"),
	loaded:  meter.Desc("config_last_success_timestamp", "When the running config was loaded, in seconds since 1970."),
}

// Register makes the metrics part of a config's registry.
func Register(registry *prometheus.Registry) error { return meter.Register(registry, collectors) }

// Describe implements [prometheus.Collector].
func (m metrics) Describe(to chan<- *prometheus.Desc) {
	to <- m.build
	to <- m.reloads
	to <- m.loaded
}

// Collect implements [prometheus.Collector].
func (m metrics) Collect(to chan<- prometheus.Metric) {
	now := Now()
	to <- prometheus.MustNewConstMetric(m.build, prometheus.GaugeValue, 1, Version(), CaddyVersion(), runtime.Version())
	to <- prometheus.MustNewConstMetric(m.reloads, prometheus.CounterValue, float64(now.Success), "success")
	to <- prometheus.MustNewConstMetric(m.reloads, prometheus.CounterValue, float64(now.Failure), "failure")
	if !now.Loaded.IsZero() {
		to <- prometheus.MustNewConstMetric(m.loaded, prometheus.GaugeValue, float64(now.Loaded.UnixMilli())/1000)
	}
}
