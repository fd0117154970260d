package console

import (
	"errors"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gdamore/tcell/v3"
)

// press presses keys: names in angle brackets, and characters.
func press(m *model, keys ...string) (last deed) {
	named := map[string]tcell.Key{
		"<up>": tcell.KeyUp, "<down>": tcell.KeyDown, "<pgup>": tcell.KeyPgUp, "<pgdn>": tcell.KeyPgDn, "<home>": tcell.KeyHome, "<end>": tcell.KeyEnd,
		"<enter>": tcell.KeyEnter, "<esc>": tcell.KeyEscape, "<back>": tcell.KeyBackspace, "<del>": tcell.KeyDelete, "<ctrl-c>": tcell.KeyCtrlC, "<ctrl-u>": tcell.KeyCtrlU,
	}
	for _, key := range keys {
		if k, is := named[key]; is {
			last = m.key(k, "")
			continue
		}
		for _, r := range key {
			last = m.key(tcell.KeyRune, string(r))
		}
	}
	return last
}

func TestKeysThatLeave(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]string{{"q"}, {"<ctrl-c>"}, {"/abc", "<ctrl-c>"}, {"k", "<ctrl-c>"}, {"?", "<ctrl-c>"}, {"?", "q"}, {"/abc", "<esc>", "q"}} {
		if !press(example(t, 3), keys...).quit {
			t.Errorf("%q does not leave", keys)
		}
	}
	for _, keys := range [][]string{{"/q"}, {"kq"}, {"x"}, {"<esc>"}} {
		if press(example(t, 3), keys...).quit {
			t.Errorf("%q leaves", keys)
		}
	}
}

func TestKeysThatSort(t *testing.T) {
	t.Parallel()
	for keys, want := range map[string]string{"": "rate", "s": "rate_up", "ss": "rate_down", "S": "session_id", "sS": "rate", "r": "-rate", "rr": "rate", "rs": "rate_up", "sr": "-rate_up"} {
		m := example(t, 3)
		m.selected, m.offset = "c9b6233d00000002", 1
		d := press(m, keys)
		if m.sort() != want || d.fetch != (keys != "") || keys != "" && (m.selected != "" || m.offset != 0) {
			t.Errorf("%q: %s, want %s; %+v", keys, m.sort(), want, d)
		}
	}
	seen := make(map[string]bool)
	m := example(t, 1)
	for range orders {
		seen[m.sort()] = true
		press(m, "s")
	}
	if len(seen) != len(orders) || m.sort() != "rate" {
		t.Errorf("%v, and then %s", seen, m.sort())
	}
}

func TestKeysThatMove(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		keys []string
		want int
	}{
		{nil, 0},
		{[]string{"<down>"}, 1},
		{[]string{"<down>", "<up>", "<up>"}, 0},
		{[]string{"<end>"}, 99},
		{[]string{"<end>", "<down>"}, 99},
		{[]string{"<end>", "<home>"}, 0},
		{[]string{"<pgdn>"}, 11},
		{[]string{"<pgdn>", "<pgdn>", "<pgup>"}, 11},
		{[]string{"<end>", "<pgup>"}, 88},
	} {
		m := example(t, 100)
		m.screen(80, 24)
		for _, key := range c.keys {
			press(m, key)
			m.screen(80, 24)
		}
		if m.at() != c.want {
			t.Errorf("%q: row %d, want %d", c.keys, m.at(), c.want)
		}
		if text := visible(m.screen(80, 24)); strings.Count(text, "\n> ") != 1 {
			t.Errorf("%q: the selected row is not seen:\n%s", c.keys, text)
		}
	}
	none := example(t, 0)
	press(none, "<down>", "<end>", "<pgup>", "k", "<del>")
	if none.asking != nil || none.said == "" {
		t.Errorf("%+v", none)
	}
	large := example(t, 3)
	large.large = true
	large.screen(80, 9) // has place for two
	press(large, "<end>")
	if large.offset != 3 {
		t.Errorf("offset %d, want 3", large.offset)
	}
	if press(large, "<home>"); large.offset != 0 {
		t.Errorf("offset %d, want 0", large.offset)
	}
}

// What is closed is what the question named, and only if it is answered with y.
func TestKeysThatClose(t *testing.T) {
	t.Parallel()
	filter := url.Values{"client": {"192.0.2.0/24", "2001:db8::/32"}, "idle": {"10m"}}
	for _, c := range []struct {
		keys []string
		path string
	}{
		{[]string{"ky"}, sessionsPath + "/c9b6233d00000001"},
		{[]string{"<down>", "<del>", "Y"}, sessionsPath + "/c9b6233d00000002"},
		{[]string{"Ky"}, sessionsPath + "?client=192.0.2.0%2F24&client=2001%3Adb8%3A%3A%2F32&idle=10m"},
		{[]string{"kn"}, ""},
		{[]string{"k", "<enter>"}, ""},
		{[]string{"k", "<esc>"}, ""},
		{[]string{"kk"}, ""},
		{[]string{"kny"}, ""},
		{[]string{"uky"}, ""},
		{[]string{"y"}, ""},
	} {
		m := example(t, 3)
		m.filter = filter
		d := press(m, c.keys...)
		path := ""
		if d.close != nil {
			path = d.close.path
		}
		if path != c.path || m.asking != nil {
			t.Errorf("%q: closes %q, want %q", c.keys, path, c.path)
		}
	}
	m := example(t, 3)
	if press(m, "K"); m.asking != nil || !strings.Contains(m.said, "there is none") {
		t.Errorf("all sessions, without a filter: %+v, %q", m.asking, m.said)
	}
	// An answer that comes between the question and the y changes nothing.
	press(m, "k")
	next := example(t, 3).now
	slices.Reverse(next.sessions)
	m.came(next, nil)
	if d := press(m, "y"); d.close == nil || !strings.HasSuffix(d.close.path, "/c9b6233d00000001") {
		t.Errorf("%+v", d.close)
	}
	if m.closed(1200, nil); m.said != "closed 1,200 sessions" {
		t.Error(m.said)
	}
	if m.closed(0, errors.New("one\ntwo")); m.said != "one two" {
		t.Error(m.said)
	}
}

func TestTypedFilter(t *testing.T) {
	t.Parallel()
	m := example(t, 3)
	if d := press(m, "/192.0.2.7x", "<back>", " upstream=10.0.0.1:1  idle=1h", "<enter>"); !d.fetch || m.typing {
		t.Errorf("%+v, %q", d, m.said)
	}
	want := url.Values{"client": {"192.0.2.7"}, "upstream": {"10.0.0.1:1"}, "idle": {"1h"}}
	if !reflect.DeepEqual(m.filter, want) {
		t.Errorf("%v, want %v", m.filter, want)
	}
	if press(m, "/"); m.typed != "client=192.0.2.7 upstream=10.0.0.1:1 idle=1h" {
		t.Errorf("%q", m.typed)
	}
	if d := press(m, "<ctrl-u>", "k", "<enter>"); d.fetch || !m.typing || !strings.HasPrefix(m.said, `"k": expected`) || !reflect.DeepEqual(m.filter, want) {
		t.Errorf("%+v %q %v", d, m.said, m.filter)
	}
	if press(m, "<esc>"); m.typing || !reflect.DeepEqual(m.filter, want) {
		t.Error("Esc does not leave the filter as it was")
	}
	if d := press(m, "/", "<ctrl-u>", "<back>", "<enter>"); !d.fetch || len(m.filter) != 0 {
		t.Errorf("%+v %v", d, m.filter)
	}
}

func TestParseFilter(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "  ": "", "192.0.2.7": "client=192.0.2.7", "2001:db8::/32 192.0.2.0/24": "client=2001:db8::/32 client=192.0.2.0/24",
		"idle=1m older=1h": "older=1h idle=1m", "listener=[::1]:80 network=udp": "listener=[::1]:80 network=udp", "upstream=a=b": "upstream=a=b",
		"x": "!\"x\": expected an address", "x=1": "!\"x=1\": expected one of client=", "idle=": "!\"idle=\": expected", "all=true": "!\"all=true\": expected",
	} {
		got, err := parseFilter(text)
		if wrong, isWrong := strings.CutPrefix(want, "!"); isWrong {
			if err == nil || !strings.HasPrefix(err.Error(), wrong) {
				t.Errorf("%q: %v, %v, want %s", text, got, err, wrong)
			}
			continue
		}
		if err != nil || filterText(got) != want {
			t.Errorf("%q: %q, %v, want %q", text, filterText(got), err, want)
		}
	}
}

// The selection stays with its session, and goes to the next one that is left where it has ended.
func TestSelectionStays(t *testing.T) {
	t.Parallel()
	m := example(t, 6)
	press(m, "<down>", "<down>")
	next := example(t, 6).now
	slices.Reverse(next.sessions)
	if m.came(next, nil); m.now.sessions[m.at()].ID != "c9b6233d00000003" {
		t.Errorf("selected %s", m.now.sessions[m.at()].ID)
	}
	gone := example(t, 6).now
	gone.sessions = append(gone.sessions[:1:1], gone.sessions[4:]...)
	m.came(example(t, 6).now, nil)
	if m.came(gone, nil); m.now.sessions[m.at()].ID != "c9b6233d00000005" {
		t.Errorf("selected %s", m.now.sessions[m.at()].ID)
	}
	if m.came(example(t, 0).now, nil); m.selected != "" {
		t.Errorf("selected %q of none", m.selected)
	}
	m.screen(80, 24)
}

func TestPauseAndHelp(t *testing.T) {
	t.Parallel()
	m := example(t, 3)
	if d := press(m, "p"); !m.paused || d.fetch {
		t.Errorf("%+v", d)
	}
	if d := press(m, " "); m.paused || !d.fetch {
		t.Errorf("%+v", d)
	}
	if press(m, "?"); !m.help {
		t.Error("? does not help")
	}
	if press(m, "k"); m.help || m.asking != nil {
		t.Error("a key that ends the help does more")
	}
	if d := press(m, "u"); !m.large || !reflect.DeepEqual(d, deed{}) {
		t.Errorf("%+v", d)
	}
}
