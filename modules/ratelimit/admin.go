package ratelimit

import (
	"cmp"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

func init() {
	caddy.RegisterModule(new(adminAPI))
}

// adminAPI serves GET /portgate/limits: the keys nearest to their limits, the nearest first.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.portgate_limits",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision has the registry know all metrics of rate_limit. Caddy makes the admin endpoint before the handlers of a config, and leaves it as it is when the config is
// refused: /metrics would be empty then.
func (*adminAPI) Provision(ctx caddy.Context) error {
	return collectors.register(ctx.GetMetricsRegistry())
}

// Routes returns what the admin endpoint serves.
func (a *adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: "/portgate/limits", Handler: caddy.AdminHandlerFunc(a.serve)}}
}

// How many keys are shown, unless ?top= says otherwise.
const (
	defaultTop = 20
	maxTop     = 1000
)

// usage is how near a key is to a limit.
type usage struct {
	Name  string  `json:"name,omitempty"` // of the handler
	Limit string  `json:"limit"`
	Key   string  `json:"key"`
	Used  float64 `json:"used"` // 1: at the limit
}

func (a *adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	if err := adminapi.Method(r, http.MethodGet); err != nil {
		return err
	}
	top, err := adminapi.Count(r.URL.Query(), "top", 1, maxTop, defaultTop)
	if err != nil {
		return err
	}
	return adminapi.Answer(w, nearest(top))
}

func nearest(top int) []usage {
	all := []usage{}
	kept.Each(func(_ string, b *buckets) bool {
		all = append(all, b.nearest(top)...)
		return true
	})
	slices.SortStableFunc(all, func(a, b usage) int { return cmp.Compare(b.Used, a.Used) })
	return all[:min(len(all), top)]
}

func (b *buckets) nearest(top int) (all []usage) {
	b.mu.Lock()
	limits := make([]*bucket.Limit, 0, len(b.limits))
	names := make(map[uint16]string, len(b.limits))
	for id, l := range b.limits {
		limits = append(limits, l.Limit)
		names[id] = l.name
	}
	b.mu.Unlock()
	nearest := b.memory.Nearest(now(), limits, top)
	if b.redis != nil {
		nearest = append(nearest, b.redis.Nearest(limits)...)
	}
	for _, u := range nearest {
		all = append(all, usage{b.name, names[u.Limit.ID()], u.Key.String(), u.Used})
	}
	return all
}

// Interface guards
var (
	_ caddy.Module      = (*adminAPI)(nil)
	_ caddy.AdminRouter = (*adminAPI)(nil)
	_ caddy.Provisioner = (*adminAPI)(nil)
)
