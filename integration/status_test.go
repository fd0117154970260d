package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// event is one of a stream of server-sent events.
type event struct {
	Name, ID string
	Data     struct {
		Name, Level, Message, Error, Upstream, Prefix, List, State, Filter string
		Closed, Lost                                                       int
	}
	JSON string
}

func (e event) String() string { return e.Name + " " + e.JSON }

// follower reads the stream of events as a browser does: it comes again when the stream has ended, and says which event it has had last.
type follower struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	all      []event // but for status
	last     string
	opens    int
	statuses int
	paused   chan struct{} // closed when the reader goes on; nil while he reads
}

// pause has the follower read no more until resume.
func (f *follower) pause() (resume func()) {
	paused := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = paused
	return sync.OnceFunc(func() { close(paused) })
}

func follow(t *testing.T, p *gate.Process, query string) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{cancel: cancel, done: make(chan struct{})}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(p.Admin(), "unix/"))
	}}}
	go func() {
		defer close(f.done)
		for ctx.Err() == nil {
			f.read(ctx, client, query)
		}
	}()
	t.Cleanup(f.end)
	gate.Eventually(t, peerTimeout, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.opens == 0 {
			return errors.New("no stream yet")
		}
		return nil
	})
	return f
}

func (f *follower) end() { f.cancel(); <-f.done }

// read reads one stream to its end.
func (f *follower) read(ctx context.Context, client *http.Client, query string) {
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/portgate/events"+query, nil)
	f.mu.Lock()
	if f.last != "" {
		req.Header.Set("Last-Event-ID", f.last)
	}
	f.mu.Unlock()
	resp, err := client.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var e event
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "retry":
			f.mu.Lock()
			f.opens++
			f.mu.Unlock()
		case "event":
			e.Name = value
		case "id":
			e.ID = value
		case "data":
			e.JSON = value
			_ = json.Unmarshal([]byte(value), &e.Data)
		case "":
			f.take(e)
			e = event{}
		}
	}
}

func (f *follower) take(e event) {
	f.mu.Lock()
	if e.ID != "" {
		f.last = e.ID
	}
	switch e.Name {
	case "":
	case "status":
		f.statuses++
	default:
		f.all = append(f.all, e)
	}
	paused := f.paused
	f.mu.Unlock()
	if paused != nil {
		<-paused
	}
}

// mustSee waits until these events have come, in this order and without others, and returns them.
func (f *follower) mustSee(t *testing.T, names ...string) (all []event) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		all = slices.Clone(f.all)
		var got []string
		for _, e := range all {
			got = append(got, e.Name)
		}
		if !slices.Equal(got, names) {
			return fmt.Errorf("events are %q, want %q", got, names)
		}
		return nil
	})
	return all
}

// What happens is told in order, each event once, over configs that are loaded and rejected: streams end then, and a client comes again.
func TestEventsOverReloads(t *testing.T) {
	t.Parallel()
	addr, upstream := gate.ReserveAddr(t), serve(t, echo)
	config := func() gate.JSON {
		return gate.Layer4(gate.Listen(addr, acl("deny list bans"), gate.Forward(upstream)))
	}
	p := gate.Start(t, config())
	f := follow(t, p, "?status=1s")
	p.Load(config())
	f.mustSee(t, "reload")
	if err := p.TryLoad(gate.Layer4(gate.Listen(addr, gate.Forward("no address")))); err == nil {
		t.Fatal("was loaded")
	}
	if all := f.mustSee(t, "reload", "config_rejected"); !strings.Contains(all[1].Data.Error, "no address") || all[1].Data.Level != "error" {
		t.Errorf("%v", all[1])
	}
	do := func(method, path, body string) {
		t.Helper()
		if status, answer, err := p.Do(method, path, body); err != nil || status >= 300 {
			t.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
		}
	}
	conn := dial(t, addr)
	defer conn.Close()
	mustExchange(t, conn)
	do("DELETE", "/portgate/sessions?listener="+addr, "")
	do("PATCH", "/portgate/upstreams/"+upstream, `{"state": "drain"}`)
	do("PUT", "/portgate/lists/bans/entries/192.0.2.0/24", `{"ttl": "1h"}`)
	do("DELETE", "/portgate/lists/bans/entries/192.0.2.0/24", "")
	want := []string{"reload", "config_rejected", "sessions_closed", "upstream_set", "ban", "unban"}
	all := f.mustSee(t, want...)
	if all[2].Data.Closed != 1 || all[2].Data.Filter == "" || all[3].Data.Upstream != upstream || all[3].Data.State != "drain" ||
		all[4].Data.List != "bans" || all[4].Data.Prefix != "192.0.2.0/24" || all[5].Data.Prefix != "192.0.2.0/24" {
		t.Errorf("%v", all[2:])
	}
	for range 10 {
		p.Load(config())
		want = append(want, "reload")
	}
	all = f.mustSee(t, want...)
	late := follow(t, p, "") // gets the last ones, too
	if again := late.mustSee(t, want...); fmt.Sprint(again) != fmt.Sprint(all) {
		t.Errorf("another stream has\n%v\nand not\n%v", again, all)
	}
	if text := p.Output(); strings.Contains(text, "stopping admin server") {
		t.Error("Caddy has waited in vain for a stream to end")
	}
}

// A stream goes on for longer than the admin endpoint gives a request, which is 10 seconds.
func TestStreamOfEventsGoesOn(t *testing.T) {
	t.Parallel()
	p := gate.Start(t, gate.Layer4(gate.Listen(gate.ReserveAddr(t), gate.Forward("127.0.0.1:9"))))
	f := follow(t, p, "?status=1s")
	gate.Eventually(t, peerTimeout, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.statuses < 13 {
			return fmt.Errorf("%d times the status", f.statuses)
		}
		return nil
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opens != 1 {
		t.Errorf("the stream has ended %d times", f.opens-1)
	}
}

// Who reads slowly holds up no edit of a list. He loses events, and is told exactly how many, however often his stream ends meanwhile.
func TestSlowReaderOfEvents(t *testing.T) {
	t.Parallel()
	const edits = 2500
	p := gate.Start(t, gate.Layer4(gate.Listen(gate.ReserveAddr(t), acl("deny list bans"), gate.Forward("127.0.0.1:9"))))
	f := follow(t, p, "")
	resume := f.pause()
	defer resume()
	for i := range edits { // of which neither the socket nor what is kept has room for all
		path := fmt.Sprintf("/portgate/lists/bans/entries/192.0.2.%d/32", i%250)
		if status, answer, err := p.Do("PUT", path, fmt.Sprintf(`{"reason": "%d %s"}`, i, strings.Repeat("x", 240))); err != nil || status != 200 {
			t.Fatal(status, answer, err)
		}
	}
	resume()
	gate.Eventually(t, peerTimeout, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		lost, came := 0, 0
		for _, e := range f.all {
			lost += e.Data.Lost
			if e.Name == "ban" {
				came++
			}
		}
		if lost == 0 || came < 200 || came+lost != edits {
			return fmt.Errorf("%d events came and %d are lost, of %d", came, lost, edits)
		}
		return nil
	})
}

// status is what these tests read of /portgate/status.
type status struct {
	Version      string
	CaddyVersion string `json:"caddy_version"`
	Uptime       float64
	Config       struct {
		Loaded    time.Time
		Reloads   struct{ Success, Failure int }
		LastError string `json:"last_error"`
	}
	Sessions struct{ TCP, UDP, Replaced int }
	Rates    struct {
		BytesUp   float64 `json:"bytes_up"`
		BytesDown float64 `json:"bytes_down"`
		Sessions  float64
		Refusals  float64
	}
	Refusals    map[string]int
	Descriptors struct{ Used, Limit int }
	Dropped     *int `json:"log_entries_dropped"`
	Degraded    []struct {
		What, Reason string
		Since        time.Time
	}
}

func mustReadStatus(t *testing.T, p *gate.Process) (s status) {
	t.Helper()
	if err := json.Unmarshal([]byte(p.MustGet("/portgate/status")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// The status, what is forwarded where and the history tell of sessions of TCP and UDP, and are not forgotten when another config is loaded.
func TestStatusOverReloads(t *testing.T) {
	t.Parallel()
	addr, to, toUDP := gate.ReserveAddr(t), serve(t, echo), serveUDP(t, echoUDP)
	config := gate.Layer4(gate.Listen(addr, acl("deny 127.0.3.0/24"), gate.Forward(to)), gate.ListenUDP(addr, gate.Forward("udp/"+toUDP)))
	p := gate.Start(t, config)
	before := mustReadStatus(t, p)
	conn, udp := dial(t, addr), dialUDPFrom(t, "127.0.0.1", addr)
	defer conn.Close()
	for range 10 {
		mustExchange(t, conn)
		mustExchange(t, udp)
	}
	denied := mustDialFrom(t, "127.0.3.1", addr)
	defer denied.Close()
	_, _ = io.Copy(io.Discard, denied)
	p.Load(config)
	if err := p.TryLoad(gate.Layer4(gate.Listen(addr, gate.Forward("no address")))); err == nil {
		t.Fatal("was loaded")
	}
	var s status
	gate.Eventually(t, peerTimeout, func() error {
		s = mustReadStatus(t, p)
		if s.Sessions.TCP != 1 || s.Sessions.UDP != 1 || s.Sessions.Replaced != 2 || s.Config.Reloads.Success != 1 || s.Config.Reloads.Failure != 1 || s.Refusals["denied"] != 1 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if !s.Config.Loaded.After(before.Config.Loaded) || !strings.Contains(s.Config.LastError, "no address") || s.Descriptors.Used < 10 || s.Descriptors.Limit < s.Descriptors.Used ||
		s.Version == "" || s.CaddyVersion == "" || s.Uptime <= before.Uptime || s.Dropped == nil {
		t.Errorf("%+v, before that %+v", s, before)
	}
	metrics := p.Metrics()
	for name, want := range map[string]float64{"build_info": 1, "descriptors_limit": float64(s.Descriptors.Limit)} {
		if got := metrics.Sum("caddy_portgate_" + name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := metrics.Sum("caddy_portgate_config_reloads_total", `result="failure"`); got != 1 {
		t.Errorf("%v reloads have failed", got)
	}
	type mapping struct {
		Listener, Network, Handler string
		Upstreams                  []string
		Sessions                   int
		SessionsTotal              int     `json:"sessions_total"`
		RateUp                     float64 `json:"rate_up"`
	}
	var mappings []mapping
	if err := json.Unmarshal([]byte(p.MustGet("/portgate/mappings")), &mappings); err != nil {
		t.Fatal(err)
	}
	for i := range mappings {
		mappings[i].RateUp = 0
	}
	want := []mapping{{addr, "tcp", "forward", []string{to}, 1, 2, 0}, {addr, "udp", "forward", []string{"udp/" + toUDP}, 1, 1, 0}}
	if fmt.Sprint(mappings) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", mappings, want)
	}
	mustHaveHistory(t, p)
	p.Load(config)
	mustHaveHistory(t, p)
	if s := mustReadStatus(t, p); s.Config.LastError != "" || s.Refusals["denied"] != 1 {
		t.Errorf("%+v", s)
	}
}

// mustHaveHistory requires that there is a point with a session of each kind, and the one that was denied.
func mustHaveHistory(t *testing.T, p *gate.Process) {
	t.Helper()
	has := func(series []*float64) bool {
		return slices.ContainsFunc(series, func(v *float64) bool { return v != nil && *v > 0 })
	}
	gate.Eventually(t, peerTimeout, func() error {
		var h struct {
			BytesUp     []*float64 `json:"bytes_up"`
			SessionsTCP []*float64 `json:"sessions_tcp"`
			SessionsUDP []*float64 `json:"sessions_udp"`
			NewSessions []*float64 `json:"new_sessions"`
			Refusals    map[string][]*float64
		}
		text := p.MustGet("/portgate/history")
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			return err
		}
		if len(h.BytesUp) != 180 || !has(h.BytesUp) || !has(h.SessionsTCP) || !has(h.SessionsUDP) || !has(h.NewSessions) || !has(h.Refusals["denied"]) {
			return fmt.Errorf("history: %s", text)
		}
		return nil
	})
}

// What Portgate adds to the admin endpoint is as closed to pages of other origins as the endpoint itself: also a stream, which a browser opens for any page.
func TestStatusIsNotForOtherOrigins(t *testing.T) {
	t.Parallel()
	admin := gate.ReserveAddr(t)
	config := fmt.Sprintf(`{"admin": {"listen": %q, "config": {"persist": false}}, "apps": {"layer4": {"servers": {"a": {"listen": ["gate+tcp/%s"],
		"routes": [{"handle": [{"handler": "forward", "to": ["127.0.0.1:9"]}]}]}}}}}`, admin, gate.ReserveAddr(t))
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	gate.Launch(t, nil, "run", "--config", path)
	ask := func(method, path string, header ...string) (status int, text string) {
		req, err := http.NewRequest(method, "http://"+admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			if header[i] == "Host" {
				req.Host = header[i+1]
			}
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := (&http.Client{Timeout: peerTimeout}).Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		first := make([]byte, 12)
		_, _ = io.ReadFull(resp.Body, first) // a stream has no end
		return resp.StatusCode, string(first)
	}
	gate.Eventually(t, peerTimeout, func() error {
		if status, text := ask("GET", "/portgate/status"); status != 200 {
			return fmt.Errorf("%d %s", status, text)
		}
		return nil
	})
	for _, path := range []string{"/portgate/status", "/portgate/history", "/portgate/mappings", "/portgate/events", "/portgate/sessions", "/portgate/upstreams"} {
		for _, header := range [][]string{
			{"Origin", "http://evil.example"},
			{"Origin", "http://evil.example:2019"},
			{"Origin", "null"},
			{"Host", "evil.example"},
			{"Host", "evil.example:" + admin[strings.LastIndex(admin, ":")+1:]}, // a name that leads here
			{"Sec-Fetch-Mode", "no-cors"},
			{"Sec-Fetch-Mode", "cors", "Referer", "http://evil.example/page"},
			{"Sec-Fetch-Mode", "navigate"},
		} {
			if status, text := ask("GET", path, header...); status != http.StatusForbidden && status != http.StatusBadRequest || strings.HasPrefix(text, "retry") {
				t.Errorf("%s with %q: %d %s", path, header, status, text)
			}
		}
		for _, header := range [][]string{nil, {"Origin", "http://" + admin}, {"Sec-Fetch-Mode", "cors", "Referer", "http://" + admin + "/portgate/"}} {
			if status, text := ask("GET", path, header...); status != 200 {
				t.Errorf("%s with %q: %d %s", path, header, status, text)
			}
		}
	}
}
