package placement

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4close"
	_ "github.com/mholt/caddy-l4/modules/l4echo"
	_ "github.com/mholt/caddy-l4/modules/l4proxy"
	_ "github.com/mholt/caddy-l4/modules/l4proxyprotocol"
	_ "github.com/mholt/caddy-l4/modules/l4tee"
	_ "github.com/mholt/caddy-l4/modules/l4throttle"

	"github.com/portgate/caddy-portgate/caddyfile"
)

func init() {
	caddy.RegisterModule(new(guard))
	caddy.RegisterModule(new(ender))
}

// checking is what both handlers of these tests are made of.
type checking struct {
	ID int `json:"id"`

	written string
}

func (c *checking) UnmarshalJSON(data []byte) error {
	type options checking
	c.written = string(data)
	return caddyfile.UnmarshalJSON(data, (*options)(c))
}

// guard keeps clients out, as acl does.
type guard struct{ checking }

func (*guard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_guard", New: func() caddy.Module { return new(guard) }}
}

func (g *guard) Provision(ctx caddy.Context) error {
	return CheckGuard(ctx, Find(ctx, "test_guard", g.written), g.ID == trusting)
}

// trusting is the id of a guard that trusts caddy-l4's proxy_protocol.
const trusting = 8

func (*guard) Handle(cx *layer4.Connection, next layer4.Handler) error { return next.Handle(cx) }

// ender has the name of a handler that ends the route.
type ender struct{ checking }

func (*ender) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.forward", New: func() caddy.Module { return new(ender) }}
}

func (e *ender) Provision(ctx caddy.Context) error {
	return Check(ctx, Find(ctx, "forward", e.written))
}

func (*ender) Handle(*layer4.Connection, layer4.Handler) error { return nil }

// tryValidate provisions a config with these apps and cleans it up.
func tryValidate(apps string) error {
	var cfg caddy.Config
	config := fmt.Sprintf(`{"admin":{"disabled":true,"config":{"persist":false}},"apps":%s}`, apps)
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	return caddy.Validate(&cfg)
}

const (
	aGuard   = `{"handler":"test_guard"}`
	forward  = `{"handler":"forward"}`
	echo     = `{"handler":"echo"}`
	matching = `"match":[{"test_matcher":{}}],`
)

func sub(routes string) string { return `{"handler":"subroute","routes":[` + routes + `]}` }

func route(handlers ...string) string {
	return `{"handle":[` + strings.Join(handlers, ",") + `]}`
}

func matched(handlers ...string) string {
	return `{` + matching + `"handle":[` + strings.Join(handlers, ",") + `]}`
}

// A handler that no connection gets to is refused, in routes of servers and of listener wrappers.
func TestOrder(t *testing.T) {
	for _, c := range []struct{ name, routes, want string }{
		{"in order", route(aGuard, forward), ""},
		{"nothing of ours", route(echo, `{"handler":"close"}`), ""},
		{"behind forward", route(forward, aGuard), "@ route 0: test_guard stands behind forward, which ends the route: expected test_guard before forward"},
		{"behind forward and others", route(forward, `{"handler":"throttle"}`), "@ route 0: throttle stands behind forward, which ends the route: expected throttle before forward"},
		{"two forwards", route(forward, forward), "@ route 0: forward stands behind forward, which ends the route: expected one forward with all upstreams"},
		{"behind echo", route(echo, aGuard), "@ route 0: test_guard stands behind echo, which ends the route: expected test_guard before echo"},
		{"behind close", route(`{"handler":"close"}`, forward), "@ route 0: forward stands behind close, which ends the route: expected forward before close"},
		{"behind proxy", route(`{"handler":"proxy","upstreams":[{"dial":["127.0.0.1:1"]}]}`, aGuard), "@ route 0: test_guard stands behind proxy, which ends the route: expected test_guard before proxy"},
		{"not next to it", route(forward, `{"handler":"throttle"}`, aGuard), "@ route 0: throttle stands behind forward, which ends the route: expected throttle before forward"},
		{"with a matcher", matched(forward, aGuard), "@ route 0: test_guard stands behind forward, which ends the route: expected test_guard before forward"},
		{"in the second route", matched(aGuard, forward) + "," + route(forward, aGuard), "@ route 1: test_guard stands behind forward, which ends the route: expected test_guard before forward"},
		{"in a subroute", route(sub(matched(forward, aGuard))), "@ route 0 subroute route 0: test_guard stands behind forward, which ends the route: expected test_guard before forward"},
		{"in a subroute in capitals", route(`{"handler":"subroute","Routes":[{"MATCH":[{"test_matcher":{}}],"HANDLE":[` + forward + `,` + aGuard + `]}]}`), "@ route 0 subroute route 0: test_guard stands behind forward, which ends the route: expected test_guard before forward"},
		{"behind a subroute in capitals that ends all", route(`{"handler":"subroute","ROUTES":[{"Handle":[`+echo+`]}]}`, aGuard), "@ route 0: test_guard stands behind subroute, which ends the route: expected test_guard before subroute"},
		{"behind a subroute with a matcher in capitals", route(`{"handler":"subroute","routes":[{"Match":[{"test_matcher":{}}],"handle":[`+echo+`]}]}`, aGuard), ""},
		{"in a branch in capitals", route(`{"handler":"tee","Branch":[` + echo + `,` + aGuard + `]}`), "@ route 0 tee: test_guard stands behind echo, which ends the route: expected test_guard before echo"},
		{"an option twice", route(`{"handler":"subroute","routes":[`+route(echo)+`],"Routes":[`+route(echo)+`]}`, aGuard), `@ route 0: both "Routes" and "routes" in one object: expected one of them`},
		{"behind a subroute that ends all", route(sub(route(echo)), aGuard), "@ route 0: test_guard stands behind subroute, which ends the route: expected test_guard before subroute"},
		{"behind a subroute with a matcher", route(sub(matched(echo)), aGuard), ""},
		{"in a subroute behind echo", route(echo, sub(route(aGuard))), "@ route 0: subroute stands behind echo, which ends the route: expected subroute before echo"},
		{"in a branch", route(`{"handler":"tee","branch":[` + echo + `,` + aGuard + `]}`), "@ route 0 tee: test_guard stands behind echo, which ends the route: expected test_guard before echo"},
		{"beside a branch that ends", route(`{"handler":"tee","branch":[`+echo+`]}`, aGuard), ""},
		{"behind a route for all", route(forward) + "," + route(aGuard), "@ route 1: no connection gets here, because route 0 has no matcher and ends all: expected a matcher in route 0, or route 1 before it"},
		{"behind a route of somebody else's for all", route(echo) + "," + route(aGuard), "@ route 1: no connection gets here, because route 0 has no matcher and ends all: expected a matcher in route 0, or route 1 before it"},
		{"behind a route for some", matched(forward) + "," + route(aGuard), ""},
		{"behind a route that goes on", route(aGuard) + "," + route(forward), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for where, apps := range map[string]string{
				`layer4 server "a"`:                   `{"layer4":{"servers":{"a":{"listen":["127.0.0.1:1"],"routes":[%s]}}}}`,
				`listener wrapper of http server "a"`: `{"http":{"servers":{"a":{"listen":["127.0.0.1:1"],"listener_wrappers":[{"wrapper":"layer4","routes":[%s]}]}}}}`,
			} {
				err := tryValidate(fmt.Sprintf(apps, c.routes))
				want := strings.Replace(c.want, "@", where, 1)
				switch {
				case want == "" && err != nil:
					t.Errorf("%s: %v", where, err)
				case want != "" && (err == nil || !strings.HasSuffix(err.Error(), ": "+want)):
					t.Errorf("%s: got %v, want %s", where, err, want)
				}
			}
		})
	}
}

// Where caddy-l4's proxy_protocol may have named the client, a guard is refused unless it says that it trusts that.
func TestProxyProtocolBeforeAGuard(t *testing.T) {
	const pp, trusts = `{"handler":"proxy_protocol","allow":["10.0.0.0/8"]}`, `{"handler":"test_guard","id":8}`
	const matcher = `{"match":[{"test_judge":{}}],"handle":[` + echo + `]}`
	for _, c := range []struct{ name, routes, want string }{
		{"before it", route(pp, aGuard), "@ route 0: test_guard stands behind caddy-l4's proxy_protocol in @ route 0"},
		{"not next to it", route(pp, `{"handler":"throttle"}`, aGuard), "@ route 0: test_guard stands behind caddy-l4's proxy_protocol in @ route 0"},
		{"trusted", route(pp, trusts), ""},
		{"behind it", route(aGuard, pp, echo), ""},
		{"in an earlier route", matched(pp) + "," + route(aGuard), "@ route 1: test_guard stands behind caddy-l4's proxy_protocol in @ route 0"},
		{"in an earlier route that ends", matched(pp, echo) + "," + route(aGuard), ""},
		{"in a subroute before it", route(sub(matched(pp)), aGuard), "@ route 0: test_guard stands behind caddy-l4's proxy_protocol in @ route 0 subroute route 0"},
		{"before its subroute", route(pp, sub(matched(aGuard))), "@ route 0 subroute route 0: test_guard stands behind caddy-l4's proxy_protocol in @ route 0"},
		{"in a subroute in capitals before it", route(`{"handler":"subroute","Routes":[{`+matching+`"HANDLE":[`+pp+`]}]}`, aGuard), "@ route 0: test_guard stands behind caddy-l4's proxy_protocol in @ route 0 subroute route 0"},
		{"before its subroute in capitals", route(pp, `{"handler":"subroute","Routes":[{`+matching+`"HANDLE":[`+aGuard+`]}]}`), "@ route 0 subroute route 0: test_guard stands behind caddy-l4's proxy_protocol in @ route 0"},
		{
			"before a matcher in a subroute in capitals", route(pp, `{"handler":"subroute","routeſ":[{"Match":[{"test_judge":{}}],"handle":[`+echo+`]}]}`),
			"@ route 0 subroute route 0: matcher test_judge stands behind caddy-l4's proxy_protocol in @ route 0",
		},
		{"in a branch beside it", route(`{"handler":"tee","branch":[`+pp+`]}`, aGuard), ""},
		{"before a matcher", matched(pp) + "," + matcher, "@ route 1: matcher test_judge stands behind caddy-l4's proxy_protocol in @ route 0"},
		{
			"before a matcher in a subroute", route(pp, sub(`{"match":[{"not":[{"test_judge":{}}]}],"handle":[`+echo+`]}`)),
			"@ route 0 subroute route 0: matcher test_judge stands behind caddy-l4's proxy_protocol in @ route 0",
		},
		{"behind a matcher", `{"match":[{"test_judge":{}}],"handle":[` + pp + `,` + echo + `]}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for where, apps := range map[string]string{
				`layer4 server "a"`:                   `{"layer4":{"servers":{"a":{"listen":["127.0.0.1:1"],"routes":[%s]}}}}`,
				`listener wrapper of http server "a"`: `{"http":{"servers":{"a":{"listen":["127.0.0.1:1"],"listener_wrappers":[{"wrapper":"layer4","routes":[%s]}]}}}}`,
			} {
				err := tryValidate(fmt.Sprintf(apps, c.routes))
				want := strings.ReplaceAll(c.want, "@", where)
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), ": "+want+", which believes anybody")) {
					t.Errorf("%s: got %v, want %s", where, err, want)
				}
			}
		})
	}
}

// Which of several wrappers of a site comes first is not known when one of them is provisioned.
func TestProxyProtocolInAnotherWrapper(t *testing.T) {
	const wrapper, pp = `{"wrapper":"layer4","routes":[%s]}`, `{"handler":"proxy_protocol"}`
	for _, c := range []struct {
		one, other string
		refused    bool
	}{
		{matched(pp), route(aGuard), true},
		{route(sub(matched(pp))), route(aGuard), true},
		{matched(pp), `{"match":[{"test_judge":{}}],"handle":[{"handler":"echo"}]}`, true},
		{matched(`{"handler":"test_step"}`), route(aGuard), false},
	} {
		err := tryValidate(fmt.Sprintf(`{"http":{"servers":{"a":{"listen":["127.0.0.1:1"],"listener_wrappers":[`+wrapper+`,`+wrapper+`]}}}}`, c.one, c.other))
		if want := `listener wrapper of http server "a": one of its several layer4 wrappers has caddy-l4's proxy_protocol, which believes anybody`; c.refused &&
			(err == nil || !strings.Contains(err.Error(), want)) || !c.refused && err != nil {
			t.Errorf("%s, %s: got %v", c.one, c.other, err)
		}
	}
}

// judge is a matcher that judges clients by their address, as that of acl does.
type judge struct{ matcher }

func init() { caddy.RegisterModule(new(judge)) }

func (*judge) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.matchers.test_judge", New: func() caddy.Module { return new(judge) }}
}

func (*judge) Provision(ctx caddy.Context) error { return CheckMatcher(ctx, "test_judge", false) }

// layer4 panics about null in place of a route. Where a handler is provisioned before that, it refuses the config.
func TestNullRoutes(t *testing.T) {
	for where, apps := range map[string]string{
		`layer4 server "a"`:                   `{"layer4":{"servers":{"a":{"listen":["127.0.0.1:1"],"routes":[%s]}}}}`,
		`listener wrapper of http server "a"`: `{"http":{"servers":{"a":{"listen":["127.0.0.1:1"],"listener_wrappers":[{"wrapper":"layer4","routes":[%s]}]}}}}`,
	} {
		err := tryValidate(fmt.Sprintf(apps, route(aGuard)+",null"))
		if want := where + ` route 1: "null": expected a route`; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A guard in front of a site that Caddy serves over HTTP/3, too, would keep nobody out.
func TestGuardOfHTTP3(t *testing.T) {
	const refused = `test_guard can't keep clients out of http server "a" at `
	for _, c := range []struct{ name, server, routes, want string }{
		{"TLS", `"listen":["127.0.0.1:1"],"tls_connection_policies":[{}]`, route(aGuard), refused + "127.0.0.1:1"},
		{"one of two addresses", `"listen":[":80",":8443"],"tls_connection_policies":[{}]`, route(aGuard), refused + ":8443"},
		{"the port of plain HTTP", `"listen":[":80"],"tls_connection_policies":[{}]`, route(aGuard), ""},
		{"another port of plain HTTP", `"listen":[":88"],"tls_connection_policies":[{}]`, route(aGuard), ""},
		{"no TLS", `"listen":[":8080"]`, route(aGuard), ""},
		{"automatic HTTPS", `"listen":[":8443"],"routes":[{"match":[{"host":["site.internal"]}]}]`, route(aGuard), refused + ":8443"},
		{"without h3", `"listen":[":8443"],"tls_connection_policies":[{}],"protocols":["h1","h2"]`, route(aGuard), ""},
		{"h3 at one address", `"listen":[":8443",":8444"],"tls_connection_policies":[{}],"protocols":["h1"],"listen_protocols":[null,["h1","h3"]]`, route(aGuard), refused + ":8444"},
		{"unix socket", `"listen":["unix//run/a"],"tls_connection_policies":[{}]`, route(aGuard), ""},
		{"guards what does not reach the site", `"listen":[":8443"],"tls_connection_policies":[{}]`, matched(aGuard, forward), ""},
		{"guards in a subroute", `"listen":[":8443"],"tls_connection_policies":[{}]`, route(sub(matched(aGuard))), refused + ":8443"},
		{"no guard", `"listen":[":8443"],"tls_connection_policies":[{}]`, matched(forward), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := tryValidate(fmt.Sprintf(`{"http":{"http_port":%d,"servers":{"a":{%s,"listener_wrappers":[{"wrapper":"layer4","routes":[%s]}]}}}}`,
				map[bool]int{true: 88, false: 80}[strings.Contains(c.server, ":88\"")], c.server, c.routes))
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want+": Caddy serves it over HTTP/3 too")):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
