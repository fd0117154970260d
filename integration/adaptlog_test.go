package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Fixtures of log writers have the format of those in adapt_test.go. The input is what follows `output` in the options of a log: in a Caddyfile it
// begins in line 4.

// remoteWriters are the log writers that adapt/ has fixtures of.
var remoteWriters = []string{"fluent", "elasticsearch"}

// Where an error comes from is Caddy's part of its text. The fixtures have what follows.
var writerErrorOrigin = regexp.MustCompile(`^(adapting config using caddyfile adapter: )?(parsing caddyfile tokens for 'log': )?(loading config: loading new config: )?` +
	`(setting up default log: loading log writer module: loading module '[a-z]+': ((decoding module config|provision)[: ]+caddy\.logging\.writers\.[a-z]+: )?)?`)

func writerFixtures(t *testing.T, kind string) []fixture {
	t.Helper()
	var all []fixture
	for _, writer := range remoteWriters {
		for _, f := range fixtures(t, "adapt/"+writer+kind, "") {
			f.title = writer + " " + f.title
			all = append(all, f)
		}
	}
	return all
}

func writerCaddyfile(p *gate.Process, in string) []byte {
	return fmt.Appendf(nil, "{\n\tadmin %s\n\tlog {\n\t\toutput %s\n\t}\n}\n", p.Admin(), in)
}

func writerJSON(p *gate.Process, in string) []byte {
	return fmt.Appendf(nil, `{"admin": {"listen": %q}, "logging": {"logs": {"default": {"writer": %s}}}}`, p.Admin(), in)
}

func writerRefusal(t *testing.T, status int, answer string) string {
	t.Helper()
	text := refusal(t, status, answer)
	return strings.TrimPrefix(text, writerErrorOrigin.FindString(text))
}

// A Caddyfile becomes this JSON, which starts although there is no collector.
func TestAdaptLogWriters(t *testing.T) {
	t.Parallel()
	p := gate.Start(t, gate.Layer4(), gate.WithEnv("GATE_HOST", "127.0.0.1"), gate.WithEnv("GATE_PORT", "9"))
	for _, f := range writerFixtures(t, ".caddyfiletest") {
		t.Run(f.title, func(t *testing.T) {
			status, answer, err := p.Post("/adapt", "text/caddyfile", writerCaddyfile(p, f.in))
			must(t, err)
			var adapted struct {
				Result struct {
					Logging struct {
						Logs map[string]struct{ Writer json.RawMessage }
					}
				}
			}
			if err := json.Unmarshal([]byte(answer), &adapted); err != nil || status != http.StatusOK {
				t.Fatalf("status %d: %s", status, answer)
			}
			writer := adapted.Result.Logging.Logs["default"].Writer
			if !sameJSON(t, writer, []byte(f.out)) {
				t.Errorf("got  %s\nwant %s", writer, f.out)
			}
			status, answer, err = p.Post("/load", "application/json", writerJSON(p, string(writer)))
			if err != nil || status != http.StatusOK {
				t.Errorf("the JSON does not start: %s (%v)", answer, err)
			}
		})
	}
}

// What is wrong is refused with this text, which has no secret.
func TestWrongLogWriters(t *testing.T) {
	t.Parallel()
	p, _ := startToRefuse(t)
	for _, f := range writerFixtures(t, "-wrong.caddyfiletest") {
		t.Run("Caddyfile "+f.title, func(t *testing.T) {
			status, answer, err := p.Post("/adapt", "text/caddyfile", writerCaddyfile(p, f.in))
			must(t, err)
			if got := writerRefusal(t, status, answer); got != f.out || strings.Contains(got, "secret") {
				t.Errorf("\n got %s\nwant %s", got, f.out)
			}
		})
	}
	for _, f := range writerFixtures(t, "-wrong.jsontest") {
		t.Run("JSON "+f.title, func(t *testing.T) {
			status, answer, err := p.Post("/load", "application/json", writerJSON(p, f.in))
			must(t, err)
			if got := writerRefusal(t, status, answer); got != f.out {
				t.Errorf("\n got %s\nwant %s", got, f.out)
			}
		})
	}
}

// Every option has a fixture that takes it and, in both forms, one that refuses a wrong value of it.
func TestFixturesCoverEveryOptionOfLogWriters(t *testing.T) {
	t.Parallel()
	p, _ := startToRefuse(t)
	inJSON := map[string]string{"basic_auth": "password"}
	for _, writer := range remoteWriters {
		status, answer, err := p.Post("/adapt", "text/caddyfile", writerCaddyfile(p, writer+" https://a {\n\tno_such_option\n}"))
		must(t, err)
		_, known, found := strings.Cut(writerRefusal(t, status, answer), "expected one of ")
		known, _, located := strings.Cut(known, ", at Caddyfile")
		if !found || !located {
			t.Fatalf("the error does not list the options: %s", answer)
		}
		for option := range strings.SplitSeq(known, ", ") {
			name := option
			if other, ok := inJSON[option]; ok {
				name = other
			}
			for path, mention := range map[string]string{
				"adapt/" + writer + ".caddyfiletest":       `(?m)^\s*` + option + `( |$)`,
				"adapt/" + writer + "-wrong.caddyfiletest": `(?m)^` + option + `: `,
				"adapt/" + writer + "-wrong.jsontest":      `(?m)^` + name + `: `,
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
