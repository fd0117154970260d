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

// fixture is a case of a file in adapt/: a title, what goes in, and what must come out. Cases look like
//
//	=== title
//	input
//	---
//	what comes out
//
// The input is one handler, which the test puts into the only route of a server: in a Caddyfile it begins in line 5. A title that
// ends with "@ address" sets the server's listen address, where that matters.
type fixture struct{ title, listen, in, out string }

func fixtures(t *testing.T, path, listen string) []fixture {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	_, cases, _ := strings.Cut("\n"+string(data), "\n=== ")
	var all []fixture
	for text := range strings.SplitSeq(cases, "\n=== ") {
		title, body, _ := strings.Cut(text, "\n")
		in, out, found := strings.Cut(body, "\n---\n")
		if !found {
			t.Fatalf("%s: %s: no line ---", path, title)
		}
		f := fixture{title: title, listen: listen, in: in, out: strings.TrimSpace(out)}
		if name, address, found := strings.Cut(title, " @ "); found {
			f.title, f.listen = name, address
		}
		all = append(all, f)
	}
	return all
}

// address is the listen address, of gate+tcp unless the fixture names another network.
func (f fixture) address() string {
	if strings.Contains(f.listen, "/") {
		return f.listen
	}
	return "gate+tcp/" + f.listen
}

// caddyfile is a whole Caddyfile with the fixture's handler. It names the admin endpoint: Caddy moves that even for a config that it then
// rejects.
func (f fixture) caddyfile(p *gate.Process) []byte {
	return fmt.Appendf(nil, "{\n\tlayer4 {\n\t\t%s {\n\t\t\troute {\n%s\n\t\t\t}\n\t\t}\n\t}\n\tadmin %s\n}\n", f.address(), f.in, p.Admin())
}

// json is a whole config with the fixture's handler.
func (f fixture) json(p *gate.Process) []byte {
	return fmt.Appendf(nil, `{"admin": {"listen": %q}, "apps": {"layer4": {"servers": {"a": {"listen": [%q], "routes": [{"handle": [%s]}]}}}}}`,
		p.Admin(), f.address(), f.in)
}

// Where an error comes from is Caddy's part of its text. The fixtures have what follows.
var errorOrigins = []string{
	"adapting config using caddyfile adapter: ",
	"parsing caddyfile tokens for 'layer4': ",
	"loading config: ", "loading new config: ", "loading layer4 app module: ",
	"provision layer4: ", "server 'a': ", "server 'srv0': ", "route 0: ", "position 0: ", "position 1: ",
	"loading module 'subroute': ", "provision layer4.handlers.subroute: ", "setting up subroutes: route 0: position 1: ",
	"loading module 'forward': ", "decoding module config: layer4.handlers.forward: ", "provision layer4.handlers.forward: ",
	"loading module 'rate_limit': ", "decoding module config: layer4.handlers.rate_limit: ", "provision layer4.handlers.rate_limit: ",
	"loading module 'accept_proxy': ", "decoding module config: layer4.handlers.accept_proxy: ", "provision layer4.handlers.accept_proxy: ",
	"loading module 'acl': ", "decoding module config: layer4.handlers.acl: ", "provision layer4.handlers.acl: ",
}

// fixtured are the handlers that adapt/ has fixtures of.
var fixtured = []string{"accept_proxy", "acl", "forward", "rate_limit"}

// fixturesOf returns the fixtures of one kind of all handlers.
func fixturesOf(t *testing.T, kind, listen string) []fixture {
	t.Helper()
	var all []fixture
	for _, handler := range fixtured {
		for _, f := range fixtures(t, "adapt/"+handler+kind, listen) {
			f.title = handler + " " + f.title
			all = append(all, f)
		}
	}
	return all
}

// refusal is the text of an error that the admin endpoint answered with.
func refusal(t *testing.T, status int, answer string) string {
	t.Helper()
	var body struct{ Error string }
	if err := json.Unmarshal([]byte(answer), &body); err != nil || status != http.StatusBadRequest {
		t.Fatalf("status %d, want 400 with an error: %s", status, answer)
	}
	text := body.Error
	for _, origin := range errorOrigins {
		text = strings.TrimPrefix(text, origin)
	}
	return text
}

// startToRefuse starts a process whose config must survive all that is refused, and returns a free address besides.
func startToRefuse(t *testing.T) (p *gate.Process, listen string) {
	t.Helper()
	addr := gate.ReserveAddr(t)
	p = gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, echo)))))
	running := p.MustGet("/config/")
	t.Cleanup(func() { // runs before the process is stopped
		must(t, oneRequest(addr))
		if now := p.MustGet("/config/"); now != running {
			t.Errorf("the running config changed:\n%s\nwas\n%s", now, running)
		}
	})
	return p, gate.ReserveAddr(t)
}

// A Caddyfile becomes this JSON.
func TestAdaptCaddyfile(t *testing.T) {
	t.Parallel()
	list := writeFile(t, "list", "192.0.2.0/24\n")
	p := gate.Start(t, gate.Layer4(),
		gate.WithEnv("GATE_HOST", "127.0.0.1"), gate.WithEnv("GATE_PORT", "9"),
		gate.WithEnv("GATE_LIST", list), gate.WithEnv("GATE_URL", servePage(t, "192.0.2.0/24\n")),
		gate.WithEnv("GATE_DATABASE", networksDatabase(t)))
	ports := gate.ReserveRange(t, 3)
	for _, f := range fixturesOf(t, ".caddyfiletest", gate.Loopback(ports)) {
		switch f.listen {
		case "3 ports":
			f.listen = fmt.Sprintf("127.0.0.1:%d-%d", ports, ports+2)
		case "gate+udp":
			f.listen = "gate+udp/" + gate.Loopback(ports)
		}
		t.Run(f.title, func(t *testing.T) {
			status, answer, err := p.Post("/adapt", "text/caddyfile", f.caddyfile(p))
			must(t, err)
			var adapted struct {
				Result struct {
					Apps struct {
						Layer4 struct {
							Servers map[string]struct {
								Routes []struct{ Handle []json.RawMessage }
							}
						}
					}
				}
			}
			if err := json.Unmarshal([]byte(answer), &adapted); err != nil || status != http.StatusOK {
				t.Fatalf("status %d: %s", status, answer)
			}
			handler := adapted.Result.Apps.Layer4.Servers["srv0"].Routes[0].Handle[0]
			var want bytes.Buffer
			must(t, json.Compact(&want, []byte(f.out)))
			if !sameJSON(t, handler, want.Bytes()) {
				t.Errorf("got  %s\nwant %s", handler, want.Bytes())
			}
			// What comes out is what the JSON form takes, and starts.
			f.in = string(handler)
			status, answer, err = p.Post("/load", "application/json", f.json(p))
			if err != nil || status != http.StatusOK {
				t.Errorf("the JSON does not start: %s (%v)", answer, err)
			}
		})
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	must(t, json.Unmarshal(a, &x))
	must(t, json.Unmarshal(b, &y))
	one, _ := json.Marshal(x)
	two, _ := json.Marshal(y)
	return bytes.Equal(one, two)
}

// A Caddyfile that is wrong is refused with this text.
func TestAdaptWrongCaddyfile(t *testing.T) {
	t.Parallel()
	p, listen := startToRefuse(t)
	for _, f := range fixturesOf(t, "-wrong.caddyfiletest", listen) {
		t.Run(f.title, func(t *testing.T) {
			status, answer, err := p.Post("/adapt", "text/caddyfile", f.caddyfile(p))
			must(t, err)
			if got := refusal(t, status, answer); got != f.out {
				t.Errorf("\n got %s\nwant %s", got, f.out)
			}
		})
	}
}

// A Caddyfile that is well-formed and can't work, and JSON that is wrong, are refused with this text when they are loaded.
func TestLoadWrongConfig(t *testing.T) {
	t.Parallel()
	p, listen := startToRefuse(t)
	for _, f := range fixturesOf(t, "-unloadable.caddyfiletest", listen) {
		t.Run("Caddyfile "+f.title, func(t *testing.T) {
			status, answer, err := p.Post("/load", "text/caddyfile", f.caddyfile(p))
			must(t, err)
			if got := refusal(t, status, answer); got != f.out {
				t.Errorf("\n got %s\nwant %s", got, f.out)
			}
		})
	}
	for _, f := range fixturesOf(t, "-wrong.jsontest", listen) {
		t.Run("JSON "+f.title, func(t *testing.T) {
			status, answer, err := p.Post("/load", "application/json", f.json(p))
			must(t, err)
			if got := refusal(t, status, answer); got != f.out {
				t.Errorf("\n got %s\nwant %s", got, f.out)
			}
		})
	}
}

// Every option has a fixture that takes it and, in both forms, one that refuses a wrong value of it.
func TestFixturesCoverEveryOption(t *testing.T) {
	t.Parallel()
	p, listen := startToRefuse(t)
	for _, handler := range fixtured {
		unknown := fixture{listen: listen, in: handler + " {\n\tno_such_option\n}"}
		status, answer, err := p.Post("/adapt", "text/caddyfile", unknown.caddyfile(p))
		must(t, err)
		_, known, found := strings.Cut(refusal(t, status, answer), "expected one of ")
		known, _, located := strings.Cut(known, ", at Caddyfile")
		if !found || !located {
			t.Fatalf("the error does not list the options: %s", answer)
		}
		for option := range strings.SplitSeq(known, ", ") {
			for path, mention := range map[string]string{
				"adapt/" + handler + ".caddyfiletest":       `(?m)^\s*` + option + `( |$)`,
				"adapt/" + handler + "-wrong.caddyfiletest": `(?m)^` + option + `: "`,
				"adapt/" + handler + "-wrong.jsontest":      `(?m)^` + option + `: "`,
			} {
				data, err := os.ReadFile(path)
				must(t, err)
				if !regexp.MustCompile(mention).Match(data) {
					t.Errorf("%s has no case for the option %s", path, option)
				}
			}
		}
	}
}
