package console

import (
	"errors"
	"fmt"
	"strings"

	"github.com/clipperhouse/displaywidth"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// look is how a piece of text looks. None says anything that the text does not.
type look uint8

const (
	plain look = iota
	strong
	heading
	chosen
	good
	warning
	bad
)

// line is a line of the screen, in pieces.
type line []piece

type piece struct {
	text string
	look look
}

// add escapes the text: it may come from a client or a server.
func (l line) add(how look, text string) line { return append(l, piece{adminapi.Printable(text), how}) }

// fitted cuts the line at a width, and fills it up.
func (l line) fitted(width int) line {
	for i, p := range l {
		taken := displaywidth.String(p.text)
		if taken > width {
			l[i].text = displaywidth.TruncateString(p.text, width, "")
			return l[:i+1].filled(width - displaywidth.String(l[i].text))
		}
		width -= taken
	}
	return l.filled(width)
}

func (l line) filled(width int) line {
	if width <= 0 {
		return l
	}
	how := plain
	if len(l) > 0 {
		how = l[len(l)-1].look
	}
	return append(l, piece{strings.Repeat(" ", width), how})
}

func (l line) String() string {
	var text strings.Builder
	for _, p := range l {
		text.WriteString(p.text)
	}
	return strings.TrimRight(text.String(), " ")
}

// overhead are the lines besides rows: four of the head, the two tables' titles and headers, and the last line.
const overhead = 9

// screen returns what a terminal of this size shows.
func (m *model) screen(width, height int) []line {
	if m.help {
		return fit(helpLines(), width, height)
	}
	lines := m.head()
	if m.large {
		m.rows = max(height-len(lines)-3, 0)
		lines = append(lines, m.upstreamTable(width, m.rows, m.offset)...)
	} else {
		few := min(max(height/6, 3), 12, m.upstreamCount())
		m.rows = max(height-overhead-few, 0)
		lines = append(lines, m.upstreamTable(width, few, 0)...)
		lines = append(lines, m.sessionTable(width, m.rows, true)...)
	}
	lines = lines[:min(len(lines), max(height-1, 0))]
	for len(lines) < height-1 {
		lines = append(lines, nil)
	}
	return fit(append(lines, m.bottom(width)), width, height)
}

func fit(lines []line, width, height int) []line {
	lines = lines[:min(len(lines), height)]
	for i := range lines {
		lines[i] = lines[i].fitted(width)
	}
	return lines
}

// plainText returns the same for a file: as long as it is, and without what a key could change.
func (m *model) plainText(width int) string {
	var text strings.Builder
	lines := append(m.head(), m.upstreamTable(width, m.upstreamCount(), 0)...)
	lines = append(lines, m.sessionTable(width, len(m.now.sessions), false)...)
	for _, l := range fit(lines, width, len(lines)) {
		text.WriteString(l.String() + "\n")
	}
	return text.String()
}

func (m *model) upstreamCount() int {
	if m.now == nil {
		return 0
	}
	return len(m.now.upstreams)
}

// head has always four lines, so that nothing jumps.
func (m *model) head() []line {
	if m.now == nil {
		return []line{line{}.add(strong, "Portgate at "+m.address), line{}.add(plain, "waiting for an answer"), m.trouble(), nil}
	}
	clock := m.now.at.Local().Format("15:04:05")
	if m.paused {
		clock += ", paused"
	}
	s := m.now.status
	if s == nil {
		return []line{
			line{}.add(strong, "Portgate at "+m.address).add(plain, "  "+clock),
			line{}.add(plain, "it has no "+statusPath+", so there are no sums here"), m.trouble(), nil,
		}
	}
	refused := line{}.add(plain, "refused   ").add(strong, perSecond(s.Rates.Refusals))
	for i, reason := range s.reasons() {
		before := "  in all: "
		if i > 0 {
			before = ", "
		}
		refused = refused.add(plain, before+reason+" "+count(s.Refusals[reason]))
	}
	return []line{
		line{}.add(strong, "Portgate at "+m.address).add(plain, "  "+clock+"  up "+span(s.Uptime)+
			fmt.Sprintf("  reloads %s, rejected %s", count(s.Config.Reloads.Success), count(s.Config.Reloads.Failure))),
		line{}.add(plain, "sessions  ").add(strong, count(s.Sessions.TCP)+" TCP, "+count(s.Sessions.UDP)+" UDP").
			add(plain, "  new ").add(strong, perSecond(s.Rates.Sessions)).
			add(plain, "  up ").add(strong, size(s.Rates.BytesUp)+"/s").
			add(plain, "  down ").add(strong, size(s.Rates.BytesDown)+"/s"),
		refused,
		m.trouble(),
	}
}

// trouble is a line with what is not as it should be, and else with how much is left.
func (m *model) trouble() line {
	const retries = 2 // Caddy drops a request when a config is loaded
	var refusal *adminapi.Refusal
	switch {
	case errors.As(m.failed, &refusal):
		return line{}.add(bad, "refused: "+refusal.Text)
	case m.failures >= retries || m.failures > 0 && m.now == nil:
		return line{}.add(bad, "no answer: "+m.failed.Error())
	}
	if m.now == nil || m.now.status == nil {
		return nil
	}
	s := m.now.status
	l := line{}.add(plain, "files     "+s.descriptors())
	if s.LogEntriesDropped > 0 {
		l = l.add(plain, "  ").add(warning, count(s.LogEntriesDropped)+" log entries dropped")
	}
	for _, d := range s.Degraded {
		l = l.add(plain, "  ").add(warning, "not as configured: "+d.text())
	}
	return l
}

// bottom is the line with the keys, and with what is asked and said.
func (m *model) bottom(width int) line {
	switch {
	case m.typing && m.said != "":
		return line{}.add(heading, prompt(m.typed, width)).add(bad, "  "+m.said)
	case m.typing:
		return line{}.add(heading, prompt(m.typed, width)).add(plain, "  Enter applies, Esc leaves, such as 192.0.2.0/24 idle=10m")
	case m.asking != nil:
		return line{}.add(heading, m.asking.question+" y/n")
	case m.said != "":
		return line{}.add(heading, m.said)
	}
	return line{}.add(heading, "q quit  s sort  r reverse  / filter  k kill  u upstreams  p pause  ? help")
}

// prompt shows the end of what is typed, where there is no place for all.
func prompt(typed string, width int) string {
	const before, after = "Filter: ", "_"
	left := []rune(typed)
	for len(left) > 0 && displaywidth.String(adminapi.Printable(before+string(left)+after)) > width {
		left = left[1:]
	}
	return before + string(left) + after
}

func helpLines() []line {
	var lines []line
	for text := range strings.Lines(helpText) {
		lines = append(lines, line{}.add(plain, strings.TrimSuffix(text, "\n")))
	}
	lines[0][0].look = strong
	return lines
}

const helpText = `caddy gate top                                          any key goes back

s  S           sort by the next or the previous column
r              the other way around
/              filter: words as below, all of which a session must pass
                 192.0.2.7  192.0.2.0/24    whose client is there
                 listener=127.0.0.1:8080    of this listener
                 upstream=10.0.0.11:5432    of this upstream
                 network=udp                of this network
                 older=1h                   that began so long ago
                 idle=10m                   in which nothing has moved for so long
up down        select a session; so do PgUp, PgDn, Home and End
k  Delete      close the selected session, after a question
K              close all sessions that pass the filter, after a question
u              upstreams large, or sessions
p  space       pause
q  Ctrl-C      quit

The sessions are the first 200 in the order that is chosen. UP is from the
client to the upstream, DOWN the other way; rates are of the last 10 seconds.
`
