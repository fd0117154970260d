package forward

import (
	"fmt"
	"slices"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
)

// placed is what handlers that are alike find out about their listen addresses.
type placed struct {
	listen []caddy.NetworkAddress
	all    []caddy.NetworkAddress // with those of the site
	ports  []portRange
	unix   bool // one of the addresses is a unix socket
	shown  *shownAs
}

// place looks at the listen addresses, and refuses those that the options don't go with.
func (h *Handler) place(ctx caddy.Context, at *placement.Finding, upstreams []upstream.Upstream) (p placed, err error) {
	p.listen = at.Listens()
	p.all = append(placement.SiteListens(ctx), p.listen...)
	p.shown = newShownAs(at, p.all)
	p.unix = slices.ContainsFunc(p.all, caddy.NetworkAddress.IsUnixNetwork)
	if err := h.checkReplyLimits(p.all); err != nil {
		return p, err
	}
	if err := h.checkProxyProtocol(p.all); err != nil {
		return p, err
	}
	if err := h.checkTLS(p.all); err != nil {
		return p, err
	}
	if err := h.checkPreconnect(p.all); err != nil {
		return p, err
	}
	for _, part := range h.parts(upstreams) {
		ports, err := matchAddrs(part.of, p.listen)
		if err == nil {
			err = checkLoops(part.of, p.all)
		}
		if err != nil {
			return p, fmt.Errorf("%s: %w", part.option, err)
		}
		if ports != nil {
			p.ports = ports
		}
	}
	return p, nil
}
