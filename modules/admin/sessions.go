// Package admin has the endpoints of Caddy's admin API that belong to no other module: the living sessions.
package admin

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(sessionsAPI))
}

const sessionsPath = "/portgate/sessions"

// maxPage is how many sessions a page may have.
const maxPage = 1_000_000

// The parameters that choose sessions, and those of a list.
var (
	filterNames = []string{"client", "listener", "upstream", "network", "older", "idle"}
	listNames   = append(filterNames[:len(filterNames):len(filterNames)], "sort", "limit", "after", "format")
	closeNames  = append(filterNames[:len(filterNames):len(filterNames)], "all")
)

// sessionsAPI serves the living sessions:
//
//	GET    /portgate/sessions          all of them; ?client=, ?listener=, ?upstream=, ?network=, ?older= and ?idle= choose some,
//	                                   ?sort= orders them, ?limit= and ?after= page, ?format=csv is a table
//	GET    /portgate/sessions/{id}     one of them
//	DELETE /portgate/sessions/{id}     closes it
//	DELETE /portgate/sessions?...      closes those that the filters choose, at least one of them; ?all=true closes all
type sessionsAPI struct{}

// CaddyModule returns the Caddy module information.
func (*sessionsAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.portgate_sessions",
		New: func() caddy.Module { return new(sessionsAPI) },
	}
}

// Provision has the registry know all metrics of sessions. Caddy makes the admin endpoint before the handlers of a config, and leaves it as it is when the config is
// refused: /metrics would be empty then.
func (*sessionsAPI) Provision(ctx caddy.Context) error {
	return session.Register(ctx)
}

// Routes returns what the admin endpoint serves.
func (a *sessionsAPI) Routes() []caddy.AdminRoute {
	handler := caddy.AdminHandlerFunc(a.serve)
	return []caddy.AdminRoute{{Pattern: sessionsPath, Handler: handler}, {Pattern: sessionsPath + "/", Handler: handler}}
}

func (a *sessionsAPI) serve(w http.ResponseWriter, r *http.Request) error {
	if err := adminapi.Method(r, http.MethodGet, http.MethodDelete); err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery) // r.URL.Query drops what it can't read: a filter less
	if err != nil {
		return adminapi.Error(http.StatusBadRequest, "query: %q: %w", r.URL.RawQuery, err)
	}
	if text, ofOne := strings.CutPrefix(r.URL.Path, sessionsPath+"/"); ofOne {
		return serveOne(w, r.Method, query, text)
	}
	if r.Method == http.MethodDelete {
		return closeSome(w, query)
	}
	return serveList(w, r, query)
}

// serveOne also gets paths that end with a slash: a script whose variable is empty has meant one session.
func serveOne(w http.ResponseWriter, method string, query url.Values, text string) error {
	if err := adminapi.Parameters(query); err != nil {
		return err
	}
	id, err := parseID(text)
	if err != nil {
		return adminapi.Error(http.StatusBadRequest, "session_id: %w", err)
	}
	s := session.Living(id)
	if s != nil && method == http.MethodDelete {
		if closed := closeAll([]*session.Session{s}, zap.Stringer("session_id", id)); closed == 1 {
			return adminapi.Answer(w, closedAnswer{closed})
		}
	} else if s != nil {
		var one row
		measured.look()
		if one.read(s, measured) {
			return adminapi.Answer(w, &one)
		}
	}
	return adminapi.Error(http.StatusNotFound, "session_id: %q: expected a session that has not ended", text)
}

// parseID reads 16 hexadecimal digits, and nothing shorter that could be half of them.
func parseID(text string) (session.ID, error) {
	id, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		return 0, caddyfile.OneOf(text, "an ID such as c9b6233d00000001")
	}
	return session.ID(id), nil
}

// closedAnswer says how many sessions were closed.
type closedAnswer struct {
	Closed int `json:"closed"`
}

// closeSome closes sessions by a filter. Whatever may be a slip is refused: no filter, one without a value, one that all sessions pass.
func closeSome(w http.ResponseWriter, query url.Values) error {
	if err := adminapi.Parameters(query, closeNames...); err != nil {
		return err
	}
	f, err := parseFilter(query)
	if err != nil {
		return err
	}
	if all, given := query["all"]; given {
		if len(all) != 1 || all[0] != "true" || len(query) > 1 {
			return adminapi.Error(http.StatusBadRequest, "all: %q: expected ?all=true and nothing else, which closes all sessions", strings.Join(all, ", "))
		}
	} else if err := f.mustNarrow(); err != nil {
		return err
	}
	return adminapi.Answer(w, closedAnswer{closeAll(f.chosen(), zap.String("filter", query.Encode()))})
}

// chosen returns the living sessions that pass the filter.
func (f *filter) chosen() (all []*session.Session) {
	now := startOfShare()
	defer now.end()
	session.EachLiving(func(s *session.Session) {
		now.step()
		if f.matches(s) {
			all = append(all, s)
		}
	})
	return all
}

// closeAll returns how many of the sessions had not ended before.
func closeAll(all []*session.Session, which zap.Field) (closed int) {
	now := startOfShare()
	defer now.end()
	for _, s := range all {
		now.step()
		if _, _, _, living := s.Traffic(); living {
			s.Close(session.ReasonAdminClosed)
			closed++
		}
	}
	if closed > 0 {
		events.Emit(events.SessionsClosed, events.Info, "sessions were closed through the admin API", zap.Int("closed", closed), which)
	}
	return closed
}

// Interface guards
var (
	_ caddy.Module      = (*sessionsAPI)(nil)
	_ caddy.AdminRouter = (*sessionsAPI)(nil)
	_ caddy.Provisioner = (*sessionsAPI)(nil)
)
