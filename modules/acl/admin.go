package acl

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

func init() {
	caddy.RegisterModule(new(adminAPI))
}

const listsPath = "/portgate/lists"

// maxRemark is how long the reason and the name of who added an entry may be.
const maxRemark = 256

// adminAPI serves the dynamic lists:
//
//	GET    /portgate/lists                            names and sizes; how lists are that are read from somewhere
//	GET    /portgate/lists/{name}                     all entries; ?limit=100 has those that were added last, the newest first
//	PUT    /portgate/lists/{name}                     {"entries": [...]} replaces them; takes what GET gives
//	PATCH  /portgate/lists/{name}                     {"damaged": false} makes what a damaged list has all of it
//	DELETE /portgate/lists/{name}?all=true            removes them
//	GET    /portgate/lists/{name}/entries/{prefix}    one entry
//	PUT    /portgate/lists/{name}/entries/{prefix}    adds it: {"ttl": "1h", "reason": "...", "by": "..."}; takes what GET gives
//	DELETE /portgate/lists/{name}/entries/{prefix}    removes it
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.portgate_lists",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision has the registry know all metrics of acl. Caddy makes the admin endpoint before the handlers of a config, and leaves it as it is when the config is
// refused: /metrics would be empty then.
func (*adminAPI) Provision(ctx caddy.Context) error {
	return collectors.register(ctx.GetMetricsRegistry())
}

// Routes returns what the admin endpoint serves.
func (a *adminAPI) Routes() []caddy.AdminRoute {
	handler := caddy.AdminHandlerFunc(a.serve)
	return []caddy.AdminRoute{{Pattern: listsPath, Handler: handler}, {Pattern: listsPath + "/", Handler: handler}}
}

// summary is what the API tells of a list as a whole.
type summary struct {
	Name    string      `json:"name"`
	Size    int         `json:"size"`
	Removed int         `json:"removed,omitempty"`
	Expired int         `json:"expired,omitempty"` // entries of a PUT whose time was over
	Damaged string      `json:"damaged,omitempty"` // what could not be read
	Rules   []string    `json:"rules,omitempty"`   // what the rules that name a dynamic list do: allow, deny or both
	Entries []remaining `json:"entries,omitzero"`
	condition
}

// remaining is an entry with the time that it still has.
type remaining struct {
	entry
	TTL string `json:"ttl,omitempty"`
}

func (a *adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	at, err := parsePath(r.URL.EscapedPath())
	if err != nil {
		return adminapi.Error(http.StatusNotFound, "%w", err)
	}
	if at.list == "" {
		if err := adminapi.Method(r, http.MethodGet); err != nil {
			return err
		}
		return adminapi.Answer(w, summaries())
	}
	d := findList(at.list)
	switch {
	case d == nil:
		return adminapi.Error(http.StatusNotFound, "list: %q: expected a list that the running config names", at.list)
	case at.prefix == "":
		return serveList(w, r, at.list, d)
	default:
		return serveEntry(w, r, d, at.prefix)
	}
}

// place is what the path of a request names.
type place struct{ list, prefix string }

var errPath = errors.New("expected " + listsPath + "/{name} or " + listsPath + "/{name}/entries/{prefix}")

// parsePath accepts the three forms of a path and no others. A script with an empty variable sends a path that is too
// short: it must not name a whole list where an entry was meant. The slash in a prefix may be escaped or not.
func parsePath(escaped string) (place, error) {
	unknown := fmt.Errorf("%q: %w", escaped, errPath)
	rest, known := strings.CutPrefix(escaped+"/", listsPath+"/")
	rest = strings.TrimSuffix(rest, "/")
	if known && rest == "" {
		return place{}, nil
	}
	name, rest, hasMore := strings.Cut(rest, "/")
	at := place{list: unescape(name)}
	if !known || checkListName(at.list) != nil {
		return place{}, unknown
	}
	if hasMore {
		prefix, isEntry := strings.CutPrefix(rest, "entries/")
		if at.prefix = unescape(prefix); !isEntry || strings.Trim(at.prefix, "/. \t") == "" {
			return place{}, unknown
		}
	}
	return at, nil
}

func unescape(s string) string {
	unescaped, err := url.PathUnescape(s)
	if err != nil {
		return ""
	}
	return unescaped
}

func summaries() []summary {
	all := []summary{}
	dynamicLists.Each(func(name string, d *dynamic) bool {
		all = append(all, summary{Name: name, Size: d.set.Load().Len(), Damaged: d.damages(), Rules: d.actions()})
		return true
	})
	slices.SortFunc(all, func(a, b summary) int { return strings.Compare(a.Name, b.Name) })
	return append(all, readLists()...)
}

func findList(wanted string) (found *dynamic) {
	dynamicLists.Each(func(name string, d *dynamic) bool {
		if name == wanted {
			found = d
		}
		return found == nil
	})
	return found
}

// clears reports whether a request says that it means all entries of a list.
func clears(r *http.Request) bool { return slices.Equal(r.URL.Query()["all"], []string{"true"}) }

func serveList(w http.ResponseWriter, r *http.Request, name string, d *dynamic) error {
	switch r.Method {
	case http.MethodGet:
		return getList(w, r, name, d)
	case http.MethodDelete:
		if !clears(r) {
			return adminapi.Error(http.StatusBadRequest, "all: expected ?all=true, which removes all entries of the list")
		}
		removed, err := d.replaceAll(nil)
		if err != nil {
			return editError(err)
		}
		return adminapi.Answer(w, summary{Name: name, Removed: removed})
	case http.MethodPut:
		return putList(w, r, name, d)
	case http.MethodPatch:
		body := struct {
			Damaged bool `json:"damaged"`
		}{true}
		if err := adminapi.Decode(r, &body, `{"damaged": false}`); err != nil {
			return err
		}
		if body.Damaged {
			return adminapi.Error(http.StatusBadRequest, `expected {"damaged": false}`)
		}
		if err := d.accept(); err != nil {
			return editError(err)
		}
	default:
		return adminapi.Method(r, http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete)
	}
	return adminapi.Answer(w, whole(name, d))
}

func getList(w http.ResponseWriter, r *http.Request, name string, d *dynamic) error {
	limit, err := adminapi.Count(r.URL.Query(), "limit", 1, maxEntries, 0)
	if err != nil {
		return err
	}
	if limit == 0 {
		return adminapi.Answer(w, whole(name, d))
	}
	entries, size := d.latest(limit)
	return adminapi.Answer(w, summary{Name: name, Size: size, Damaged: d.damages(), Entries: entries})
}

func whole(name string, d *dynamic) summary {
	entries := d.all()
	return summary{Name: name, Size: len(entries), Damaged: d.damages(), Entries: entries}
}

// putList takes what GET gives, of which the entries alone count.
func putList(w http.ResponseWriter, r *http.Request, name string, d *dynamic) error {
	var body struct {
		Entries []given `json:"entries"`
		Name    string  `json:"name"`
		Size    int     `json:"size"`
		Damaged string  `json:"damaged"`
	}
	if err := adminapi.Decode(r, &body, `{"entries": [{"prefix": "192.0.2.0/24"}]}`); err != nil {
		return err
	}
	if body.Entries == nil {
		return adminapi.Error(http.StatusBadRequest, "entries: expected a list")
	}
	if len(body.Entries) == 0 && !clears(r) {
		return adminapi.Error(http.StatusBadRequest, "entries: expected at least one, or ?all=true, which removes all entries of the list")
	}
	entries := make([]entry, 0, len(body.Entries))
	expired := 0
	for i := range body.Entries {
		e, err := body.Entries[i].entry(d.clock.now(), r)
		switch {
		case errors.Is(err, errOver):
			expired++
		case err != nil:
			return adminapi.Error(http.StatusBadRequest, "entries: %w", err)
		default:
			entries = append(entries, e)
		}
	}
	if _, err := d.replaceAll(entries); err != nil {
		return editError(err)
	}
	answer := whole(name, d)
	answer.Expired = expired
	return adminapi.Answer(w, answer)
}

func serveEntry(w http.ResponseWriter, r *http.Request, d *dynamic, path string) error {
	prefix, err := ipset.ParsePrefix(path)
	if err != nil {
		return adminapi.Error(http.StatusBadRequest, "prefix: %w", err)
	}
	absent := adminapi.Error(http.StatusNotFound, "prefix: %q: expected an entry of the list", prefix)
	switch r.Method {
	case http.MethodGet:
		e, ok := d.get(prefix)
		if !ok {
			return absent
		}
		return adminapi.Answer(w, e)
	case http.MethodPut:
		return putEntry(w, r, d, prefix)
	case http.MethodDelete:
		switch ok, err := d.remove(prefix); {
		case err != nil:
			return editError(err)
		case !ok:
			return absent
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	default:
		return adminapi.Method(r, http.MethodGet, http.MethodPut, http.MethodDelete)
	}
}

func putEntry(w http.ResponseWriter, r *http.Request, d *dynamic, prefix netip.Prefix) error {
	var body given
	if err := adminapi.Decode(r, &body, `{"ttl": "1h"}`); err != nil {
		return err
	}
	if body.Prefix == "" {
		body.Prefix = prefix.String()
	}
	e, err := body.entry(d.clock.now(), r)
	if err == nil && e.Prefix != prefix {
		err = fmt.Errorf("prefix: %q: expected %q, as the path has it, or nothing", body.Prefix, prefix)
	}
	if err != nil {
		return adminapi.Error(http.StatusBadRequest, "%w", err)
	}
	if err := d.add(e); err != nil {
		return editError(err)
	}
	return adminapi.Answer(w, d.shown(e))
}

// editError tells a list that is full from one that can't be stored.
func editError(err error) error {
	if errors.Is(err, errFull) {
		return adminapi.Error(http.StatusConflict, "%w", err)
	}
	return adminapi.Error(http.StatusInternalServerError, "%w", err)
}

// Interface guards
var (
	_ caddy.Module      = (*adminAPI)(nil)
	_ caddy.AdminRouter = (*adminAPI)(nil)
	_ caddy.Provisioner = (*adminAPI)(nil)
)
