package placement

import (
	"fmt"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// site is the HTTP server that a listener wrapper belongs to, as it is when its wrappers are provisioned: Caddy knows by
// then whether it serves TLS.
type site struct {
	app    *caddyhttp.App
	server *caddyhttp.Server
}

// siteOf returns nil for a handler that does not stand in front of an HTTP site.
func siteOf(ctx caddy.Context) *site {
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	for _, module := range ctx.Modules() {
		if app, ok := module.(*caddyhttp.App); ok && server != nil {
			return &site{app, server}
		}
	}
	return nil
}

// SiteListens returns the addresses of the HTTP server that a handler stands in front of.
func SiteListens(ctx caddy.Context) (listen []caddy.NetworkAddress) {
	site := siteOf(ctx)
	if site == nil {
		return nil
	}
	for _, text := range site.server.Listen {
		if addr, err := caddy.ParseNetworkAddress(text); err == nil { // else it is the server's to refuse
			listen = append(listen, addr)
		}
	}
	return listen
}

// checkHTTP3 returns an error where Caddy opens a port for HTTP/3 beside a listener of the site.
func (s *site) checkHTTP3(handler string) error {
	if len(s.server.TLSConnPolicies) == 0 {
		return nil
	}
	for i, listen := range s.server.Listen {
		addr, err := caddy.ParseNetworkAddress(listen)
		if err != nil || addr.IsUnixNetwork() || !slices.Contains(s.protocols(i), "h3") {
			continue
		}
		if addr.PortRangeSize() == 1 && int(addr.StartPort) == s.plainPort() {
			continue // is served without TLS
		}
		return fmt.Errorf("%s can't keep clients out of http server %q at %s: Caddy serves it over HTTP/3 too, and no listener wrapper sees "+
			"that: expected the protocols h1 and h2 only, in a Caddyfile with the global option servers { protocols h1 h2 }",
			handler, s.server.Name(), addr.String())
	}
	return nil
}

// protocols returns the protocols at the i-th listen address.
func (s *site) protocols(i int) []string {
	if i < len(s.server.ListenProtocols) && s.server.ListenProtocols[i] != nil {
		return s.server.ListenProtocols[i]
	}
	return s.server.Protocols
}

func (s *site) plainPort() int {
	if s.app.HTTPPort != 0 {
		return s.app.HTTPPort
	}
	return caddyhttp.DefaultHTTPPort
}
