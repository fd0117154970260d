package admin

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

const clientsPath = "/portgate/clients"

// How many clients are shown, unless ?limit= says otherwise.
const (
	defaultClients = 20
	maxClients     = 10_000
)

// client is what the sessions of an address have in common.
type client struct {
	IP        string  `json:"client_ip"`
	Sessions  int     `json:"sessions"`
	BytesUp   int64   `json:"bytes_up"` // of the living sessions
	BytesDown int64   `json:"bytes_down"`
	RateUp    float64 `json:"rate_up"` // bytes per second, over the last 10 seconds; of sessions whose rate is known
	RateDown  float64 `json:"rate_down"`

	addr netip.Addr
}

// orderOf returns what orders clients, the largest first; nil where there is no such order.
func orderOf(sort string) func(c *client) float64 {
	switch sort {
	case "rate":
		return func(c *client) float64 { return c.RateUp + c.RateDown }
	case "bytes":
		return func(c *client) float64 { return float64(c.BytesUp + c.BytesDown) }
	case "sessions":
		return func(c *client) float64 { return float64(c.Sessions) }
	}
	return nil
}

// serveClients serves the clients that have living sessions, the busiest first.
func serveClients(w http.ResponseWriter, r *http.Request) error {
	if err := adminapi.Method(r, http.MethodGet); err != nil {
		return err
	}
	query := r.URL.Query()
	if err := adminapi.Parameters(query, "sort", "limit"); err != nil {
		return err
	}
	sort := cmp.Or(query.Get("sort"), "rate")
	order := orderOf(sort)
	if order == nil {
		return adminapi.Error(http.StatusBadRequest, "sort: %w", caddyfile.OneOf(sort, "rate", "bytes", "sessions"))
	}
	limit, err := adminapi.Count(query, "limit", 1, maxClients, defaultClients)
	if err != nil {
		return err
	}
	if begins := measured.look(); begins && sort == "rate" {
		if err := wait(r.Context(), tickEvery); err != nil {
			return err
		}
	}
	return adminapi.Answer(w, busiest(order, limit))
}

// busiest takes memory for each client while it looks, and sessions wait for nothing of it.
func busiest(order func(c *client) float64, limit int) []*client {
	byAddr := make(map[netip.Addr]*client)
	now := startOfShare()
	defer now.end()
	session.EachLiving(func(s *session.Session) {
		now.step()
		up, down, lastActive, living := s.Traffic()
		addr := s.Client.Addr().Unmap().WithZone("")
		if !living || !addr.IsValid() {
			return
		}
		c := byAddr[addr]
		if c == nil {
			c = &client{addr: addr}
			byAddr[addr] = c
		}
		c.add(s, up, down, lastActive)
	})
	all := make([]*client, 0, len(byAddr))
	for _, c := range byAddr {
		now.step()
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *client) int {
		now.step()
		return cmp.Or(cmp.Compare(order(b), order(a)), a.addr.Compare(b.addr))
	})
	all = all[:min(len(all), limit)]
	for _, c := range all {
		c.IP = c.addr.String()
	}
	return all
}

func (c *client) add(s *session.Session, up, down int64, lastActive time.Time) {
	c.Sessions++
	c.BytesUp += up
	c.BytesDown += down
	rateUp, rateDown, _ := measured.of(s, up, down, lastActive)
	c.RateUp += rateUp
	c.RateDown += rateDown
}
