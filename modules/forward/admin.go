package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

func init() {
	caddy.RegisterModule(new(adminAPI))
}

const upstreamsPath = "/portgate/upstreams"

// maxPatch bounds the body of a request.
const maxPatch = 4 << 10

// maxPage is how many upstreams a page may have.
const maxPage = 10_000

// adminAPI serves the upstreams of all handlers:
//
//	GET   /portgate/upstreams           all of them; ?name=, ?state= and ?handler= choose some, ?limit= and ?after= pages
//	GET   /portgate/upstreams/{name}    those of that name
//	PATCH /portgate/upstreams/{name}    {"state": "drain"|"maint"|"ready", "weight": 3}, or one of both; a weight of null is that of the config
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.portgate_upstreams",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision has the registry know all metrics of forward. Caddy makes the admin endpoint before the handlers of a config, and leaves it as it is when the config is
// refused: /metrics would be empty then.
func (*adminAPI) Provision(ctx caddy.Context) error {
	return registerMetrics(ctx.GetMetricsRegistry())
}

// Routes returns what the admin endpoint serves.
func (a *adminAPI) Routes() []caddy.AdminRoute {
	handler := caddy.AdminHandlerFunc(a.serve)
	return []caddy.AdminRoute{{Pattern: upstreamsPath, Handler: handler}, {Pattern: upstreamsPath + "/", Handler: handler}}
}

func (a *adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	// The name is all that is left of the path: the slash in tcp/127.0.0.1:9000 may be escaped or not. Two slashes in a row have to be
	// escaped, because Caddy redirects such a path before it gets here.
	name, err := url.PathUnescape(strings.TrimPrefix(strings.TrimPrefix(r.URL.EscapedPath(), upstreamsPath), "/"))
	if err != nil {
		return adminapi.Error(http.StatusNotFound, "%q: expected %s/{name}", r.URL.EscapedPath(), upstreamsPath)
	}
	switch {
	case r.Method == http.MethodGet && name == "":
		return serveAll(w, r)
	case r.Method == http.MethodGet:
		if err := adminapi.Parameters(r.URL.Query()); err != nil {
			return err
		}
		return serveOne(w, name)
	case r.Method == http.MethodPatch && name == "":
		return adminapi.Error(http.StatusBadRequest, "expected the name of an upstream, as in %s/127.0.0.1:9000", upstreamsPath)
	case r.Method == http.MethodPatch:
		return servePatch(w, r, name)
	}
	return adminapi.Method(r, http.MethodGet, http.MethodPatch)
}

func serveAll(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	if err := adminapi.Parameters(query, "name", "state", "handler", "limit", "after"); err != nil {
		return err
	}
	for _, state := range query["state"] {
		if err := caddyfile.OneOf(state, upstream.States[:]...); err != nil {
			return adminapi.Error(http.StatusBadRequest, "state: %w", err)
		}
	}
	limit, err := adminapi.Count(query, "limit", 1, maxPage, 0)
	if err != nil {
		return err
	}
	return adminapi.AnswerEach(w, listing{
		name: query.Get("name"), handler: query.Get("handler"), states: query["state"], after: query.Get("after"), limit: limit,
	}.rows())
}

func serveOne(w http.ResponseWriter, name string) error {
	if !isKnown(name) {
		return errUnknown(name)
	}
	return adminapi.AnswerEach(w, listing{exactly: name}.rows())
}

// patch is what may be said of an upstream.
type patch struct {
	State  patchState  `json:"state"`
	Weight patchWeight `json:"weight"`
}

type patchState struct {
	given bool
	to    runState
}

// UnmarshalJSON refuses null, too.
func (p *patchState) UnmarshalJSON(data []byte) error {
	var word string
	if json.Unmarshal(data, &word) != nil || string(data) == "null" {
		word = string(data)
	}
	to := slices.Index(runStates[:], word)
	if to < 0 {
		return fmt.Errorf("%q: expected drain, maint or ready", word)
	}
	p.given, p.to = true, runState(to)
	return nil
}

type patchWeight struct {
	given bool
	to    int
}

// UnmarshalJSON takes null for the weight of the config.
func (p *patchWeight) UnmarshalJSON(data []byte) error {
	p.given, p.to = true, noWeight
	if string(data) == "null" {
		return nil
	}
	n, err := strconv.Atoi(string(data))
	if err != nil || n < 0 || n > upstream.MaxWeight {
		return fmt.Errorf("%q: expected a whole number from 0 to %d, or null, which gives back that of the config", strings.Trim(string(data), `"`), upstream.MaxWeight)
	}
	p.to = n
	return nil
}

// applied returns the order that the patch makes of another one.
func (p *patch) applied(o order) order {
	if p.State.given {
		o.state = p.State.to
	}
	if p.Weight.given {
		o.weight = p.Weight.to
	}
	return o
}

func servePatch(w http.ResponseWriter, r *http.Request, name string) error {
	if err := adminapi.Parameters(r.URL.Query()); err != nil { // ?handler= would not be what is meant
		return err
	}
	if !isKnown(name) {
		return errUnknown(name)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxPatch)
	var said patch
	if err := adminapi.Decode(r, &said, `{"state": "drain"}`); err != nil {
		return err
	}
	if !said.State.given && !said.Weight.given {
		return adminapi.Error(http.StatusBadRequest, `body: expected a state or a weight, such as {"state": "drain"} or {"weight": 3}`)
	}
	if err := atRunTime.set(name, said.applied); err != nil {
		return adminapi.Error(http.StatusInternalServerError, "%w", err)
	}
	return adminapi.AnswerEach(w, listing{exactly: name}.rows())
}

// isKnown reports whether a config has an upstream, or something was said of it at run time.
func isKnown(name string) bool {
	return counts.Held(name) || !atRunTime.now.Load().of(name).none()
}

// errUnknown names the upstreams that may have been meant.
func errUnknown(name string) error {
	known := make(map[string]struct{})
	for _, h := range handlers.newestFirst() {
		if now := h.rosters.now.Load(); now != nil {
			for i := range now.pool.Len() {
				known[now.pool.At(i).Name] = struct{}{}
			}
		}
	}
	err := fmt.Errorf("upstream: %q: expected one that the running config has", name)
	nearest := caddyfile.Nearest(name, slices.Collect(maps.Keys(known)), 3)
	for i := range nearest {
		nearest[i] = strconv.Quote(nearest[i])
	}
	switch {
	case len(known) == 0:
		err = errors.New(err.Error() + ", which has none")
	case len(nearest) > 0:
		err = fmt.Errorf("%w, such as %s", err, strings.Join(nearest, ", "))
	}
	return adminapi.Error(http.StatusNotFound, "%w", err)
}

// Interface guards
var (
	_ caddy.Module      = (*adminAPI)(nil)
	_ caddy.AdminRouter = (*adminAPI)(nil)
	_ caddy.Provisioner = (*adminAPI)(nil)
)
