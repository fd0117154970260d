package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

const siteDirective = "portgate_status"

// siteCaddyfile is a whole Caddyfile with the fixture's directive in a site, from line 5 on.
func (f fixture) siteCaddyfile(p *gate.Process) []byte {
	return fmt.Appendf(nil, "{\n\tadmin %s\n}\nhttp://%s {\n%s\n}\n", p.Admin(), f.listen, f.in)
}

// siteJSON is a whole config with the fixture's handler in a site.
func (f fixture) siteJSON(p *gate.Process) []byte {
	return fmt.Appendf(nil, `{"admin": {"listen": %q}, "apps": {"http": {"servers": {"a": {"listen": [%q], "routes": [{"handle": [%s]}]}}}}}`,
		p.Admin(), f.listen, f.in)
}

// siteOrigins are Caddy's part of an error about a directive of a site.
var siteOrigins = []string{
	"adapting config using caddyfile adapter: ", "parsing caddyfile tokens for 'portgate_status': ",
	"loading config: ", "loading new config: ", "loading http app module: ", "provision http: ", "server a: ", "setting up route handlers: ",
	"route 0: ", "loading handler modules: ", "position 0: ", "loading module 'portgate_status': ",
	"decoding module config: http.handlers.portgate_status: ", "provision http.handlers.portgate_status: ",
}

func siteRefusal(t *testing.T, status int, answer string) string {
	t.Helper()
	text := refusal(t, status, answer)
	for _, origin := range siteOrigins {
		text = strings.TrimPrefix(text, origin)
	}
	return text
}

// The directive becomes this JSON, which starts; what is wrong is refused with this text; and every option has its cases.
func TestAdaptSite(t *testing.T) {
	t.Parallel()
	p, listen := startToRefuse(t)
	name := "adapt/" + siteDirective
	for _, f := range fixtures(t, name+"-wrong.caddyfiletest", listen) {
		status, answer, err := p.Post("/adapt", "text/caddyfile", f.siteCaddyfile(p))
		must(t, err)
		if got := siteRefusal(t, status, answer); got != f.out {
			t.Errorf("%s:\n got %s\nwant %s", f.title, got, f.out)
		}
	}
	for _, f := range fixtures(t, name+"-wrong.jsontest", listen) {
		status, answer, err := p.Post("/load", "application/json", f.siteJSON(p))
		must(t, err)
		if got := siteRefusal(t, status, answer); got != f.out {
			t.Errorf("%s:\n got %s\nwant %s", f.title, got, f.out)
		}
	}
	for _, option := range []string{"writable", "hosts"} {
		for path, mention := range map[string]string{
			name + ".caddyfiletest": `(?m)^\s*` + option + `( |$)`, name + "-wrong.caddyfiletest": `(?m)^` + option + `: "`, name + "-wrong.jsontest": `(?m)^` + option + `: "`,
		} {
			data, err := os.ReadFile(path)
			must(t, err)
			if !regexp.MustCompile(mention).Match(data) {
				t.Errorf("%s has no case for the option %s", path, option)
			}
		}
	}
}

func TestAdaptedSiteStarts(t *testing.T) {
	t.Parallel()
	p := gate.Start(t, gate.Layer4())
	for _, f := range fixtures(t, "adapt/"+siteDirective+".caddyfiletest", gate.ReserveAddr(t)) {
		status, answer, err := p.Post("/adapt", "text/caddyfile", f.siteCaddyfile(p))
		must(t, err)
		handler := regexp.MustCompile(`\{[^{}]*"handler":"` + siteDirective + `"[^{}]*\}`).FindString(answer)
		var want bytes.Buffer
		must(t, json.Compact(&want, []byte(f.out)))
		if status != http.StatusOK || handler == "" || !sameJSON(t, []byte(handler), want.Bytes()) {
			t.Errorf("%s: %d\n got %s\nwant %s", f.title, status, answer, want.Bytes())
			continue
		}
		f.in = handler
		if status, answer, err := p.Post("/load", "application/json", f.siteJSON(p)); err != nil || status != http.StatusOK {
			t.Errorf("%s: the JSON does not start: %s (%v)", f.title, answer, err)
		}
	}
}
