package console

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/vt"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// hangGuard ends a test in which nothing happens any more.
const hangGuard = time.Minute

// fakeAPI answers as the admin API does, and remembers what was asked.
type fakeAPI struct {
	mu     sync.Mutex
	asked  []string
	broken bool
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.String())
	broken := f.broken
	f.mu.Unlock()
	switch {
	case broken:
		w.WriteHeader(http.StatusInternalServerError)
	case r.Method == http.MethodDelete:
		fmt.Fprint(w, `{"closed": 1}`)
	case r.URL.Path == sessionsPath:
		fmt.Fprint(w, sessionsJSON(6))
	case r.URL.Path == upstreamsPath:
		fmt.Fprint(w, upstreamsJSON)
	case r.URL.Path == statusPath:
		fmt.Fprint(w, statusJSON)
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeAPI) breaks(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

func (f *fakeAPI) was(asked string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.asked {
		if one == asked {
			return true
		}
	}
	return false
}

// startAPI returns a client for an API.
func startAPI(t *testing.T, api http.Handler) *adminapi.Client {
	t.Helper()
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	client, err := adminapi.NewClient(server.Listener.Addr().String())
	must(t, err)
	return client
}

// shown returns what is on a terminal.
func shown(term vt.MockTerm, width, height int) string {
	var text strings.Builder
	for y := range height {
		for x := range width {
			cell := term.GetCell(vt.Coord{X: vt.Col(x), Y: vt.Row(y)})
			if cell.C == "" {
				text.WriteString(" ")
			}
			text.WriteString(cell.C)
		}
		text.WriteString("\n")
	}
	return text.String()
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hangGuard); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

// TestTopOnATerminal goes through the whole of top on a terminal that is an emulator: keys, a session that is closed after a question, errors, another size, and the end.
func TestTopOnATerminal(t *testing.T) {
	api := new(fakeAPI)
	terminal := vt.NewMockTerm(vt.MockOptSize{X: 80, Y: 24})
	screen, err := tcell.NewTerminfoScreenFromTty(terminal, tcell.OptNegotiation(false), tcell.OptSanitizeContent(true))
	must(t, err)
	must(t, screen.Init())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := &call{client: startAPI(t, api), ctx: ctx, out: os.Stdout}
	ended := make(chan error, 1)
	go func() { ended <- c.runScreen(&model{address: "here"}, screen, 20*time.Millisecond) }()
	width, height := 80, 24
	see := func(text string) {
		t.Helper()
		waitFor(t, text+" on\n"+shown(terminal, width, height), func() bool { return strings.Contains(shown(terminal, width, height), text) })
	}
	see("> 192.0.2.7:51228")
	see("SESSIONS  by rate, 6")
	terminal.SendRaw([]byte("s\x1b[B")) // and the key down
	see("SESSIONS  by rate_up, 6")
	see("> [2001:db8")
	waitFor(t, "the request in the other order", func() bool { return api.was("GET " + sessionsPath + "?limit=200&sort=rate_up") })
	terminal.SendRaw([]byte("k"))
	see("Close session c9b6233d00000002 of")
	terminal.SendRaw([]byte("y"))
	see("closed 1 session ")
	if !api.was("DELETE " + sessionsPath + "/c9b6233d00000002") {
		t.Errorf("%q", api.asked)
	}
	terminal.SendRaw([]byte("/192.0.2.0/24\r"))
	waitFor(t, "the request with a filter", func() bool { return api.was("GET " + sessionsPath + "?client=192.0.2.0%2F24&limit=200&sort=rate_up") })
	api.breaks(true)
	see("refused: Internal Server Error")
	api.breaks(false)
	see("files     18,310")
	width, height = 200, 60
	terminal.SetSize(vt.Coord{X: 200, Y: 60})
	see("LISTENER")
	see("c9b6233d00000001")
	terminal.SendRaw([]byte("q"))
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(hangGuard):
		t.Fatal("q does not end it")
	}
}

// An answer to what is no longer asked is not shown, and what is asked now follows it.
func TestAnswersThatAreLate(t *testing.T) {
	t.Parallel()
	api := new(fakeAPI)
	m := &model{limit: sessionsShown}
	a := &asker{call: &call{client: startAPI(t, api), ctx: t.Context()}, model: m, answers: make(chan answer, 1), closed: make(chan func(), 1)}
	a.ask()
	late := <-a.answers
	m.key(tcell.KeyRune, "/")
	for _, r := range "192.0.2.7" {
		m.key(tcell.KeyRune, string(r))
	}
	if !m.key(tcell.KeyEnter, "").fetch {
		t.Fatal("a filter asks for nothing")
	}
	a.ask()
	if a.take(late); m.now != nil {
		t.Error("the answer without the filter is shown")
	}
	if a.take(<-a.answers); m.now == nil || !api.was("GET "+sessionsPath+"?client=192.0.2.7&limit=200&sort=rate") || a.asking {
		t.Errorf("%v: %q", m.now, api.asked)
	}
}
