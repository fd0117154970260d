package admin

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/overview"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

const mappingsPath = "/portgate/mappings"

// mapping is what is forwarded from a listen address: a port, a range of them, or a unix socket.
type mapping struct {
	Listener      string   `json:"listener"`
	Network       string   `json:"network"`
	Handler       string   `json:"handler"`
	Upstreams     []string `json:"upstreams"`
	Sessions      int64    `json:"sessions"`
	SessionsTotal int64    `json:"sessions_total"` // those that have begun, since the listen address is there
	RateUp        float64  `json:"rate_up"`        // bytes per second, over the last 10 seconds
	RateDown      float64  `json:"rate_down"`
}

// readMappings returns all that is forwarded, in the order of listeners. Several handlers that one listen address leads to make one mapping.
func readMappings() []*mapping {
	all := []*mapping{}
	var found gate.Index[*mapping]
	known := make(map[[2]string]*mapping)
	for _, m := range overview.Mappings() {
		key := [2]string{m.Network, m.Address}
		one := known[key]
		if one == nil {
			one = &mapping{Listener: m.Address, Network: m.Network, Handler: m.Handler, Upstreams: []string{}}
			known[key] = one
			all = append(all, one)
			found.Add(m.Network, m.Listener, m.Ports, one)
		}
		for _, name := range m.Upstream {
			if !slices.Contains(one.Upstreams, name) {
				one.Upstreams = append(one.Upstreams, name)
			}
		}
	}
	r := current()
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.fresh()
	}
	for _, line := range session.Lines() {
		one, ok := found.First(line.Network, line.Listener)
		if !ok {
			continue
		}
		one.Sessions += line.Living.Load()
		one.SessionsTotal += line.Begun.Load()
		if r != nil {
			up, down := r.lineRates(line)
			one.RateUp, one.RateDown = one.RateUp+up, one.RateDown+down
		}
	}
	slices.SortFunc(all, func(a, b *mapping) int {
		return cmp.Or(strings.Compare(a.Listener, b.Listener), strings.Compare(a.Network, b.Network))
	})
	return all
}

func serveMappings(w http.ResponseWriter, r *http.Request) error {
	if err := reads(r); err != nil {
		return err
	}
	return adminapi.AnswerEach(w, slices.Values(readMappings()))
}
