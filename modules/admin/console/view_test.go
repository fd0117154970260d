package console

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/clipperhouse/displaywidth"
	"github.com/gdamore/tcell/v3"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// TestScreens compares what a terminal shows with golden files.
func TestScreens(t *testing.T) {
	t.Parallel()
	before := &model{address: "unix//run/caddy.sock"}
	dead := &model{address: "localhost:2019"}
	dead.came(nil, errors.New(`admin API at "localhost:2019": connection refused`))
	older := example(t, 3)
	older.now.status = nil
	failing := example(t, 3)
	failing.came(nil, errors.New("EOF"))
	failing.came(nil, errors.New("admin API: \x1b[2J"))
	refused := example(t, 3)
	refused.came(nil, &adminapi.Refusal{Status: 400, Text: `idle: "x": expected a duration`})
	large := example(t, 40)
	large.large = true
	scrolled := example(t, 200)
	scrolled.screen(80, 24)
	scrolled.key(tcell.KeyPgDn, "")
	scrolled.screen(80, 24)
	scrolled.key(tcell.KeyPgDn, "")
	typing := example(t, 3)
	typing.typing, typing.typed, typing.said = true, "192.0.2.0/24 idle=10m", `"x": expected y`
	asking := example(t, 3)
	asking.filter = url.Values{"client": {"192.0.2.0/24"}, "idle": {"10m"}}
	asking.key(tcell.KeyRune, "K")
	help := example(t, 3)
	help.help = true
	for name, m := range map[string]*model{
		"full": example(t, 60), "before": before, "dead": dead, "older": older, "failing": failing, "refused": refused, "large": large, "scrolled": scrolled,
		"typing": typing, "asking": asking, "help": help, "empty": {address: "localhost:2019", now: new(snapshot)},
	} {
		for _, size := range [][2]int{{80, 24}, {200, 60}} {
			golden(t, fmt.Sprintf("%s-%dx%d", name, size[0], size[1]), visible(m.screen(size[0], size[1])))
		}
	}
	golden(t, "plain-80", example(t, 5).plainText(80))
	golden(t, "plain-120", example(t, 5).plainText(120))
}

// Whatever the size and whatever the names, each screen has just that size, and nothing in it that a terminal would take for a command.
func TestScreensFit(t *testing.T) {
	t.Parallel()
	for _, width := range []int{1, 2, 10, 40, 79, 80, 81, 120, 200, 1000} {
		for _, height := range []int{1, 2, 5, 9, 10, 24, 60, 300} {
			for n := range 6 {
				m := example(t, n*n)
				m.large, m.help, m.typing = n == 4, n == 3, n == 2
				m.typed = "日\x1b[31m\u202e"
				lines := m.screen(width, height)
				if len(lines) != min(height, len(lines)) || len(lines) < height && !m.help {
					t.Fatalf("%dx%d: %d lines", width, height, len(lines))
				}
				for _, l := range lines {
					taken := 0
					for _, p := range l {
						taken += displaywidth.String(p.text)
						if strings.ContainsFunc(p.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
							t.Fatalf("%dx%d: %q", width, height, p.text)
						}
					}
					if taken != width {
						t.Fatalf("%dx%d: %d columns: %q", width, height, taken, l)
					}
				}
			}
		}
	}
}

// TestTables compares what the other commands print.
func TestTables(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]interface{ table() *table }{
		"status": decode[status](t, statusJSON), "upstreams": decode[upstreams](t, upstreamsJSON), "lists": decode[lists](t, listsJSON),
		"list": decode[list](t, listJSON), "limits": decode[limits](t, limitsJSON), "mappings": decode[mappings](t, mappingsJSON),
		"sessions": decode[sessions](t, sessionsJSON(6)), "none": new(sessions),
	} {
		var text strings.Builder
		must(t, v.table().write(&text))
		golden(t, "table-"+name, text.String())
		if strings.ContainsFunc(text.String(), func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' }) {
			t.Errorf("%s: %q", name, text.String())
		}
	}
}

// What is typed last is seen, also where there is no place for all of it.
func TestPrompt(t *testing.T) {
	t.Parallel()
	m := example(t, 1)
	press(m, "/"+strings.Repeat("192.0.2.7 ", 20)+"日本=end")
	text := m.screen(40, 24)[23].String()
	if !strings.HasPrefix(text, "Filter: ") || !strings.HasSuffix(text, " 日本=end_") || displaywidth.String(text) > 40 {
		t.Errorf("%q", text)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for n, want := range map[float64]string{
		-1: "0B", 0: "0B", 999.4: "999B", 999.5: "1.00KB", 1234: "1.23KB", 9994: "9.99KB", 9995: "10.0KB", 99_949: "99.9KB", 99_950: "100KB", 999_499: "999KB", 999_500: "1.00MB",
		1.5e9: "1.50GB", 2e12: "2.00TB", 3e15: "3.00PB", 4e18: "4000PB",
	} {
		if got := size(n); got != want || len(got) > 6 {
			t.Errorf("size of %v: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[float64]string{
		-1: "-", 0: "0.0s", 9.94: "9.9s", 9.96: "10s", 59.4: "59s", 59.6: "1m00s", 3599: "59m59s", 3599.7: "1h00m", 86399: "23h59m", 86400: "1d00h", 8639999: "99d23h", 8640000: "100d", 1e12: "24855d",
	} {
		if got := span(n); got != want || len(got) > 6 {
			t.Errorf("span of %v: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1: "-1", -123: "-123", -1234: "-1,234"} {
		if got := count(n); got != want {
			t.Errorf("count of %v: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0/s", 0.04: "0.0/s", 3.5: "3.5/s", 9.96: "10/s", 1234.5: "1,235/s"} {
		if got := perSecond(n); got != want {
			t.Errorf("%v a second: %q, want %q", n, got, want)
		}
	}
}

// The page shows what the command shows.
func TestScreenOfTheDocs(t *testing.T) {
	t.Parallel()
	m := example(t, 10)
	m.now.sessions = append(m.now.sessions[:1:1], m.now.sessions[4:]...)
	m.now.status.Degraded = nil
	var text strings.Builder
	for _, l := range m.screen(80, 18) {
		text.WriteString(l.String() + "\n")
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "gate.md"))
	must(t, err)
	if !strings.Contains(string(page), "```text\n"+text.String()+"```\n") {
		t.Errorf("docs/gate.md does not have\n%s", text.String())
	}
	for _, name := range []string{"top", "sessions", "upstreams", "mappings", "lists", "limits", "status"} {
		if !strings.Contains(string(page), "\n## "+strings.ToUpper(name[:1])+name[1:]+"\n") {
			t.Errorf("docs/gate.md has no section for %s", name)
		}
	}
}
