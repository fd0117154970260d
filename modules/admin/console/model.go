package console

import (
	"net/url"
	"slices"
	"strings"

	"github.com/gdamore/tcell/v3"
)

// orders are those of the API. S goes back, s forth.
var orders = [...]string{
	"rate", "rate_up", "rate_down", "bytes", "bytes_up", "bytes_down", "idle", "duration", "client_ip", "listener", "upstream", "state", "session_id",
}

// model is what top knows and what its user has chosen. It does nothing by itself: keys are answered with what is to be done.
type model struct {
	address  string // of the API
	order    int
	reversed bool
	filter   url.Values
	paused   bool
	help     bool
	large    bool // the upstreams have the screen
	limit    int  // how many sessions are asked for

	now      *snapshot // nil before the first answer
	failures int       // answers that have failed since the last one
	failed   error     // the last of them

	selected string // ID of a session
	offset   int    // of the first row that is seen
	rows     int    // that were seen last

	typing bool   // the filter is being typed
	typed  string // so far
	asking *order // is to be confirmed
	said   string // what came of the last thing that was done
}

// order is something to close.
type order struct {
	path     string
	question string
}

// deed is what a key has to be answered with.
type deed struct {
	quit  bool
	fetch bool // what is shown is no longer what is wanted
	close *order
}

func (m *model) sort() string {
	if m.reversed {
		return "-" + orders[m.order]
	}
	return orders[m.order]
}

// key is a key that was pressed.
func (m *model) key(key tcell.Key, text string) deed {
	if key == tcell.KeyCtrlC {
		return deed{quit: true}
	}
	m.said = ""
	switch {
	case m.typing:
		return m.keyOfFilter(key, text)
	case m.asking != nil:
		asked := m.asking
		m.asking = nil
		if text == "y" || text == "Y" {
			return deed{close: asked}
		}
		m.said = "nothing was closed"
		return deed{}
	case m.help:
		m.help = false
		return deed{quit: text == "q"}
	}
	if d, done := m.move(key); done {
		return d
	}
	switch text {
	case "q":
		return deed{quit: true}
	case "?", "h":
		m.help = true
	case " ", "p":
		m.paused = !m.paused
		return deed{fetch: !m.paused}
	case "s":
		return m.sorted((m.order+1)%len(orders), false)
	case "S":
		return m.sorted((m.order+len(orders)-1)%len(orders), false)
	case "r":
		return m.sorted(m.order, !m.reversed)
	case "u":
		m.large, m.offset = !m.large, 0
	case "/", "f":
		m.typing, m.typed = true, filterText(m.filter)
	case "k":
		m.askForSelected()
	case "K":
		m.askForAll()
	}
	return deed{}
}

func (m *model) sorted(by int, reversed bool) deed {
	m.order, m.reversed, m.offset, m.selected = by, reversed, 0, ""
	return deed{fetch: true}
}

// keyOfFilter takes the filter as it is typed, at its end alone: it is a few words, and not a line to edit.
func (m *model) keyOfFilter(key tcell.Key, text string) deed {
	switch key {
	case tcell.KeyEscape:
		m.typing = false
	case tcell.KeyBackspace:
		if runes := []rune(m.typed); len(runes) > 0 {
			m.typed = string(runes[:len(runes)-1])
		}
	case tcell.KeyCtrlU:
		m.typed = ""
	case tcell.KeyEnter:
		filter, err := parseFilter(m.typed)
		if err != nil {
			m.said = err.Error()
			return deed{}
		}
		m.typing, m.filter, m.offset, m.selected = false, filter, 0, ""
		return deed{fetch: true}
	case tcell.KeyRune:
		m.typed += text
	}
	return deed{}
}

// move answers the keys that choose a row.
func (m *model) move(key tcell.Key) (deed, bool) {
	var by int
	last := m.length() - 1
	switch key {
	case tcell.KeyUp:
		by = -1
	case tcell.KeyDown:
		by = 1
	case tcell.KeyPgUp:
		by = -max(m.rows, 1)
	case tcell.KeyPgDn:
		by = max(m.rows, 1)
	case tcell.KeyHome:
		by = -last - 1
	case tcell.KeyEnd:
		by = last + 1
	case tcell.KeyDelete:
		m.askForSelected()
		return deed{}, true
	default:
		return deed{}, false
	}
	if last < 0 {
		return deed{}, true
	}
	if m.large {
		m.offset = max(min(m.offset+by, last-m.rows+1), 0)
		return deed{}, true
	}
	m.selected = m.now.sessions[max(min(m.at()+by, last), 0)].ID
	return deed{}, true
}

// length is how many rows there are.
func (m *model) length() int {
	switch {
	case m.now == nil:
		return 0
	case m.large:
		return len(m.now.upstreams)
	}
	return len(m.now.sessions)
}

// at returns the place of the selected session; that of the first one where it has gone.
func (m *model) at() int {
	return max(slices.IndexFunc(m.now.sessions, func(s session) bool { return s.ID == m.selected }), 0)
}

func (m *model) askForSelected() {
	if m.large || m.length() == 0 {
		m.said = "no session is selected"
		return
	}
	s := &m.now.sessions[m.at()]
	m.asking = &order{sessionsPath + "/" + url.PathEscape(s.ID), "Close session " + s.ID + " of " + s.client() + "?"}
}

func (m *model) askForAll() {
	if len(m.filter) == 0 {
		m.said = "K closes what the filter chooses, and there is none: press / first"
		return
	}
	m.asking = &order{sessionsPath + question(m.filter), "Close all sessions with " + filterText(m.filter) + "?"}
}

// came takes an answer of the API, or the error that came instead.
func (m *model) came(s *snapshot, err error) {
	if err != nil {
		m.failures, m.failed = m.failures+1, err
		return
	}
	m.failures, m.failed = 0, nil
	if m.selected != "" && !slices.ContainsFunc(s.sessions, func(one session) bool { return one.ID == m.selected }) {
		m.keepPlace(s)
	}
	m.now = s
}

// keepPlace selects, of the next sessions that are there still, the one that was below the selected one, which has ended.
func (m *model) keepPlace(next *snapshot) {
	for _, s := range m.now.sessions[m.at():] {
		if slices.ContainsFunc(next.sessions, func(one session) bool { return one.ID == s.ID }) {
			m.selected = s.ID
			return
		}
	}
	m.selected = ""
}

// closed takes how many sessions were closed, or why none was.
func (m *model) closed(n int, err error) {
	if m.said = "closed " + plural(n, "session"); err != nil {
		m.said = strings.ReplaceAll(err.Error(), "\n", " ")
	}
}
