package admin

import (
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/admin/page"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

func init() {
	caddy.RegisterModule(new(pageAPI))
}

// portgatePath is where everything of Portgate is on the admin endpoint.
const portgatePath = "/portgate/"

// pageAPI serves the status page at /portgate/.
type pageAPI struct{}

// CaddyModule returns the Caddy module information.
func (*pageAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.portgate_page",
		New: func() caddy.Module { return new(pageAPI) },
	}
}

// Routes returns what the admin endpoint serves.
func (*pageAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: portgatePath, Handler: caddy.AdminHandlerFunc(servePage)}}
}

// servePage gets every path that nothing else has.
func servePage(w http.ResponseWriter, r *http.Request) error {
	return servePageFile(w, r, strings.TrimPrefix(r.URL.Path, portgatePath), true)
}

func servePageFile(w http.ResponseWriter, r *http.Request, name string, mayChange bool) error {
	if r.Method == http.MethodHead || r.Method == http.MethodGet {
		if !page.Serve(w, r, name, mayChange) {
			http.NotFound(w, r)
		}
		return nil
	}
	return adminapi.Method(r, http.MethodGet)
}

// Interface guards
var (
	_ caddy.Module      = (*pageAPI)(nil)
	_ caddy.AdminRouter = (*pageAPI)(nil)
)
