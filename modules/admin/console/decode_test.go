package console

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// What is no answer of the API does not show as one that says that nothing is there.
func TestOtherAnswers(t *testing.T) {
	t.Parallel()
	for _, v := range []any{new(sessions), new(upstreams), new(lists), new(limits), new(mappings), new(status)} {
		for _, text := range []string{"null", "{}", "1", `"["`, "[1]", "[", `[{}`, "<html>", "", `{"started": 1}`} {
			if err := decodeAnswer([]byte(text), v); err == nil || !strings.HasPrefix(err.Error(), "expected an answer of the admin API of a Caddy that has Portgate: ") {
				t.Errorf("%T: %s: %v", v, text, err)
			}
		}
	}
	for _, text := range []string{`[{"upstreams": null}]`, `[{}]`, "[]", " [ ]"} {
		must(t, decodeAnswer([]byte(text), new(mappings)))
	}
}

// A small element of JSON becomes a large one here.
func TestTooManyElements(t *testing.T) {
	t.Parallel()
	var all names
	text := "[" + strings.Repeat(`"",`, maxElements-1) + `""]`
	must(t, decodeAnswer([]byte(text), &all))
	if len(all) != maxElements {
		t.Errorf("%d elements", len(all))
	}
	if err := decodeAnswer([]byte(`["",`+text[1:]), &all); err == nil || !strings.HasSuffix(err.Error(), "expected a list of at most 1000000") {
		t.Errorf("one more: %v", err)
	}
	if err := decodeAnswer([]byte(`{"started": "2026-11-28T08:00:00Z", "x": "`+strings.Repeat("x", maxStatus)+`"}`), new(status)); err == nil {
		t.Error("a status may have any length")
	}
}

func TestOtherServer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("{}"))
	}))
	t.Cleanup(server.Close)
	client, err := adminapi.NewClient(server.Listener.Addr().String())
	must(t, err)
	if n, err := closeAt(t.Context(), client, sessionsPath+"?all=true"); err == nil {
		t.Errorf("%d sessions were closed", n)
	}
	if s, err := fetch(t.Context(), client, url.Values{}, "rate", 1); err == nil {
		t.Errorf("%+v", s)
	}
}

// One long cell leaves the other rows alone.
func TestLongCell(t *testing.T) {
	t.Parallel()
	shown := &table{header: []string{"NAME", ">NUMBER"}}
	shown.add(strings.Repeat("x", 64<<10), "1")
	shown.add("y", "2")
	var text strings.Builder
	must(t, shown.write(&text))
	if got, want := text.String(), "NAME  NUMBER\n"+strings.Repeat("x", 64<<10)+"       1\ny          2\n"; got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}
