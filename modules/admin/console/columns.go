package console

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/clipperhouse/displaywidth"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// column is one of a table whose width is given.
type column struct {
	name  string
	width int  // at least
	most  int  // may be given; 0: no more than width
	right bool // numbers
	rank  int  // a width without place for all leaves out the highest
}

// chooseColumns returns which columns a width has place for, and how wide each is then. It depends on nothing else, so that no column moves while one looks.
func chooseColumns(all []column, width int) (chosen []int, widths []int) {
	taken := func(rank int) (sum int) {
		for _, c := range all {
			if c.rank <= rank {
				sum += c.width + 1
			}
		}
		return sum - 1
	}
	rank := len(all)
	for rank > 0 && taken(rank) > width {
		rank--
	}
	for i, c := range all {
		if c.rank <= rank {
			chosen, widths = append(chosen, i), append(widths, c.width)
		}
	}
	left := width - taken(rank)
	for grown := true; left > 0 && grown; {
		grown = false
		for at, i := range chosen {
			if left > 0 && widths[at] < all[i].most {
				widths[at]++
				left--
				grown = true
			}
		}
	}
	return chosen, widths
}

// cell fits an escaped text into a width. What was cut ends with "~".
func cell(text string, width int, right bool) string {
	if taken := displaywidth.String(text); taken > width {
		text = displaywidth.TruncateString(text, width, "~")
	}
	padding := strings.Repeat(" ", max(width-displaywidth.String(text), 0))
	if right {
		return padding + text
	}
	return text + padding
}

var sessionColumns = []column{
	{name: "CLIENT", width: 21, most: 47, rank: 0},
	{name: "LISTENER", width: 21, most: 47, rank: 5},
	{name: "UPSTREAM", width: 21, most: 47, rank: 1},
	{name: "NET", width: 4, rank: 8},
	{name: "STATE", width: 10, rank: 6},
	{name: "UP/S", width: 6, right: true, rank: 2},
	{name: "DOWN/S", width: 6, right: true, rank: 2},
	{name: "UP", width: 6, right: true, rank: 4},
	{name: "DOWN", width: 6, right: true, rank: 4},
	{name: "IDLE", width: 6, right: true, rank: 3},
	{name: "AGE", width: 6, right: true, rank: 3},
	{name: "SESSION", width: 16, rank: 7},
	{name: "RULE", width: 12, most: 60, rank: 9},
}

func (s *session) cells() []string {
	return []string{
		s.client(), s.Listener, s.Upstream, s.Network, s.State, rate(s.RateUp), rate(s.RateDown),
		size(float64(s.BytesUp)), size(float64(s.BytesDown)), span(s.Idle), span(s.Duration), s.ID, s.Rule,
	}
}

var upstreamColumns = []column{
	{name: "UPSTREAM", width: 21, most: 47, rank: 0},
	{name: "STATE", width: 10, rank: 1},
	{name: "SESSIONS", width: 8, right: true, rank: 2},
	{name: "QUEUED", width: 6, right: true, rank: 4},
	{name: "FAILS", width: 5, right: true, rank: 5},
	{name: "WEIGHT", width: 6, right: true, rank: 6},
	{name: "HANDLER", width: 21, most: 47, rank: 7},
	{name: "LAST ERROR", width: 12, most: 200, rank: 3},
}

func (u *upstream) cells() []string {
	return []string{u.Name, u.State, count(u.Sessions), count(u.Queued), strconv.Itoa(u.Fails), strconv.Itoa(u.Weight), u.Handler, u.LastError}
}

// headerOf returns the names of the columns.
func headerOf(all []column, width int) line {
	chosen, widths := chooseColumns(all, width)
	var cells []string
	for at, i := range chosen {
		cells = append(cells, cell(all[i].name, widths[at], all[i].right))
	}
	return line{}.add(heading, strings.Join(cells, " ")).filled(0)
}

// rowOf returns a row. The cells are escaped before they are cut.
func rowOf(all []column, width int, cells []string, how look, at func(i int) look) (row line) {
	chosen, widths := chooseColumns(all, width)
	for place, i := range chosen {
		look := how
		if at != nil && how == plain {
			look = at(i)
		}
		if place > 0 {
			row = append(row, piece{" ", how})
		}
		row = append(row, piece{cell(adminapi.Printable(cells[i]), widths[place], all[i].right), look})
	}
	return row
}

const stateColumn = 1 // of upstreamColumns

// upstreamTable returns a title, the header, and at most so many rows.
func (m *model) upstreamTable(width, rows, offset int) []line {
	if m.now == nil {
		return nil
	}
	all := m.now.upstreams
	up := 0
	for i := range all {
		if all[i].State == "up" {
			up++
		}
	}
	title := fmt.Sprintf("UPSTREAMS  %d of %d up", up, len(all))
	if len(all) == upstreamsShown {
		title += ", and there may be more"
	}
	lines := []line{line{}.add(strong, title), headerOf(upstreamColumns, width)}
	all = all[min(offset, len(all)):]
	for i := range all[:min(len(all), rows)] {
		state := all[i].State
		lines = append(lines, rowOf(upstreamColumns, width, all[i].cells(), plain, func(i int) look {
			if i != stateColumn {
				return plain
			}
			return [...]look{bad, warning, warning, good}[trouble(state)]
		}))
	}
	return lines
}

// sessionTable does the same for sessions. Where one can be selected, it moves the rows so that it is seen.
func (m *model) sessionTable(width, rows int, selecting bool) []line {
	if m.now == nil {
		return nil
	}
	all := m.now.sessions
	title := "SESSIONS  by " + m.sort()
	if len(m.filter) > 0 {
		title += ", with " + filterText(m.filter)
	}
	if title += ", "; len(all) == m.limit {
		title += "the first "
	}
	title += strconv.Itoa(len(all))
	lines := []line{line{}.add(strong, title), headerOf(sessionColumns, width-2)}
	lines[1] = append(line{piece{"  ", heading}}, lines[1]...)
	first, at := 0, -1
	if selecting && len(all) > 0 {
		at = m.at()
		m.offset = max(min(m.offset, at, len(all)-rows), at-rows+1, 0)
		first = m.offset
	}
	for i := first; i < min(len(all), first+rows); i++ {
		how, mark := plain, "  "
		if i == at {
			how, mark = chosen, "> "
		}
		lines = append(lines, append(line{piece{mark, how}}, rowOf(sessionColumns, width-2, all[i].cells(), how, nil)...))
	}
	return lines
}
