package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/admin/page"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/configs"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(Site))
	httpcaddyfile.RegisterDirective("portgate_status", parseSite)
	httpcaddyfile.RegisterDirectiveOrder("portgate_status", httpcaddyfile.Before, "respond")
}

const defaultSitePath = "/portgate"

// Site is an HTTP handler that serves the status page, and below it what the admin API has at /portgate/, as a part of a site. It asks nobody
// who he is: put it behind the site's own authentication. Requests for other paths go to the next handler.
type Site struct {
	// The path of the page, such as `/status`; `/` for a handler that gets paths with their beginning cut off, as in `handle_path`.
	// Default: `/portgate`.
	Path string `json:"path,omitempty"`

	// Whether bans, draining and closing are allowed, and not just looking. Default: false.
	Writable bool `json:"writable,omitempty"`

	// Names by which the site may be asked for over plain HTTP without a user. Elsewhere a name proves nothing: anybody can have one of his own
	// lead to this machine, and a browser then takes his page for a part of the site. Over TLS, for a user that `basic_auth` or another
	// authentication of Caddy has found, and for addresses and `localhost` no names are needed. Default: none.
	Hosts []string `json:"hosts,omitempty"`

	below   string // the path, with a slash at its end
	routes  []caddy.AdminRoute
	origins *http.CrossOriginProtection
	release func() error
	stopped chan struct{} // closed when the server stops, or the config ends
}

// CaddyModule returns the Caddy module information.
func (*Site) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.portgate_status",
		New: func() caddy.Module { return new(Site) },
	}
}

// Provision has the process keep a history, as the admin endpoint does.
func (s *Site) Provision(ctx caddy.Context) error {
	if s.Path == "" {
		s.Path = defaultSitePath
	}
	if err := s.check(); err != nil {
		return err
	}
	s.below = strings.TrimSuffix(s.Path, "/") + "/"
	s.origins = http.NewCrossOriginProtection()
	s.stopped = make(chan struct{})
	stop := sync.OnceFunc(func() { close(s.stopped) })
	context.AfterFunc(ctx.Context, stop)
	if server, is := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); is {
		server.RegisterOnShutdown(stop) // it waits for streams to end, and the config for the server
	}
	configs.Watch(ctx)
	recorder, err := recorders.Acquire(struct{}{}, func() (*recorder, error) { return newRecorder(ofSessions), nil })
	if err != nil {
		return err
	}
	s.release = recorder.Release
	if err := session.Register(ctx); err != nil {
		return err
	}
	return s.addRoutes(ctx)
}

// addRoutes finds what the modules serve at the admin endpoint. The events here are streams that end with this site, not with that endpoint.
func (s *Site) addRoutes(ctx caddy.Context) error {
	for _, info := range caddy.GetModules("admin.api") {
		if !strings.HasPrefix(info.ID.Name(), "portgate_") {
			continue
		}
		module := info.New()
		switch module.(type) {
		case *pageAPI:
			continue
		case *stateAPI:
			s.routes = append(s.routes, stateRoutes(func() <-chan struct{} { return s.stopped })...)
			continue
		}
		if p, is := module.(caddy.Provisioner); is {
			if err := p.Provision(ctx); err != nil {
				return fmt.Errorf("%s: %w", info.ID, err)
			}
		}
		if router, is := module.(caddy.AdminRouter); is {
			s.routes = append(s.routes, router.Routes()...)
		}
	}
	return nil
}

// Cleanup gives back the history.
func (s *Site) Cleanup() error {
	if s.release == nil {
		return nil
	}
	return s.release()
}

func (s *Site) check() error {
	if err := checkSitePath(s.Path); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	for _, host := range s.Hosts {
		if err := checkSiteHost(host); err != nil {
			return fmt.Errorf("hosts: %w", err)
		}
	}
	return nil
}

func checkSitePath(text string) error {
	if !strings.HasPrefix(text, "/") || strings.ContainsAny(text, "?#%*{} \\;") || path.Clean(text) != strings.TrimSuffix(text, "/") && text != "/" {
		return caddyfile.OneOf(text, "a path such as /status, without wildcards and placeholders")
	}
	return nil
}

func checkSiteHost(text string) error {
	if text == "" || strings.ContainsAny(text, "/:*{} ") {
		return caddyfile.OneOf(text, "a name such as gate.internal, without a port")
	}
	return nil
}

// ServeHTTP implements [caddyhttp.MiddlewareHandler].
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if r.URL.Path+"/" == s.below {
		w.Header().Set("Location", s.below[strings.LastIndexByte(s.below[:len(s.below)-1], '/')+1:]) // relative: the browser knows what was cut off
		w.WriteHeader(http.StatusPermanentRedirect)
		return nil
	}
	name, is := strings.CutPrefix(r.URL.Path, s.below)
	if !is {
		return next.ServeHTTP(w, r)
	}
	err := s.serve(w, r, name)
	var refused caddy.APIError
	if !errors.As(err, &refused) {
		if r.Context().Err() != nil {
			return nil // he has left, and that was all
		}
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(refused.HTTPStatus)
	return json.NewEncoder(w).Encode(map[string]string{"error": refused.Err.Error()})
}

func (s *Site) serve(w http.ResponseWriter, r *http.Request, name string) error {
	page.Protect(w.Header())
	if err := s.admit(r, name == ""); err != nil {
		return err
	}
	route, is := s.route(portgatePath + name)
	if !is {
		return servePageFile(w, r, name, s.Writable)
	}
	w.Header().Set("Cache-Control", "no-store")
	there := r.Clone(r.Context())
	there.URL.Path = portgatePath + name
	if there.URL.RawPath != "" { // what is escaped in it is behind the path of the page
		there.URL.RawPath = portgatePath + strings.TrimPrefix(r.URL.RawPath, s.below)
	}
	return route.Handler.ServeHTTP(w, there)
}

// route finds what serves a path, as Caddy's admin endpoint does.
func (s *Site) route(path string) (found caddy.AdminRoute, is bool) {
	for _, route := range s.routes {
		if route.Pattern == path || strings.HasSuffix(route.Pattern, "/") && strings.HasPrefix(path, route.Pattern) {
			return route, true
		}
	}
	return found, false
}

// admit refuses what may be the work of another page in the browser of somebody who has the right. A link of another page may lead to the page
// itself, which nobody can frame.
func (s *Site) admit(r *http.Request, document bool) error {
	if err := s.admitHost(r); err != nil {
		return err
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if document && reads {
		return nil
	}
	asked := *r
	asked.Method = http.MethodPost // the check lets pass what only reads
	if err := s.origins.Check(&asked); err != nil {
		return adminapi.Error(http.StatusForbidden, "Sec-Fetch-Site %q, Origin %q: expected a request of this site's own page", r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin"))
	}
	if reads {
		return nil
	}
	if !s.Writable {
		return adminapi.Error(http.StatusMethodNotAllowed, "method %s: expected GET, because portgate_status is not writable", r.Method)
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" { // no form has it
		return adminapi.Error(http.StatusUnsupportedMediaType, "Content-Type: %q: expected application/json", r.Header.Get("Content-Type"))
	}
	return nil
}

// admitHost refuses names that may be somebody else's, who has them lead here.
func (s *Site) admitHost(r *http.Request) error {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil || r.TLS != nil || host == "localhost" || s.hasHost(host) {
		return nil
	}
	repl, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if repl != nil {
		if user, _ := repl.GetString("http.auth.user.id"); user != "" {
			return nil
		}
	}
	return adminapi.Error(http.StatusForbidden, "host: %q: expected TLS, a user, an address, or a name that the option hosts has", r.Host)
}

func (s *Site) hasHost(host string) bool {
	return slices.ContainsFunc(s.Hosts, func(name string) bool { return strings.EqualFold(name, host) })
}

// parseSite sets up the handler from Caddyfile tokens. Syntax:
//
//	portgate_status [<path>] {
//		writable
//		hosts <name>...
//	}
func parseSite(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	s := new(Site)
	if err := s.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(nil, s), nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. See [parseSite].
func (s *Site) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	return caddyfile.Unmarshal(d,
		func(args []string) error {
			if s.Path = args[0]; len(args) > 1 {
				return caddyfile.OneOf(strings.Join(args, " "), "one path such as /status")
			}
			return checkSitePath(s.Path)
		},
		caddyfile.Flag("writable", &s.Writable),
		caddyfile.Option{Name: "hosts", Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
			s.Hosts = append(s.Hosts, args...)
			for _, host := range args {
				if err := checkSiteHost(host); err != nil {
					return err
				}
			}
			return nil
		}},
	)
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (s *Site) UnmarshalJSON(data []byte) error {
	type options Site
	return caddyfile.UnmarshalJSON(data, (*options)(s))
}

// Interface guards
var (
	_ caddy.Module                = (*Site)(nil)
	_ caddy.Provisioner           = (*Site)(nil)
	_ caddy.CleanerUpper          = (*Site)(nil)
	_ caddyhttp.MiddlewareHandler = (*Site)(nil)
	_ caddycaddyfile.Unmarshaler  = (*Site)(nil)
)
