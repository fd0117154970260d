package console

import (
	"bufio"
	"io"
	"strings"

	"github.com/clipperhouse/displaywidth"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// widestPadded bounds how wide a column becomes: one cell that somebody has made long would fill each row with spaces.
const widestPadded = 100

// table is rows of text below a header. A column is as wide as its widest cell, and has two spaces behind it. A cell that is wider than widestPadded moves
// what stands behind it in its row alone.
type table struct {
	header []string // one that begins with > is of numbers, which are aligned at their ends
	rows   [][]string
}

// add escapes the cells: they show what clients and servers have chosen.
func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = adminapi.Printable(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) write(to io.Writer) error {
	header, right, widths := make([]string, len(t.header)), make([]bool, len(t.header)), make([]int, len(t.header))
	for i, name := range t.header {
		header[i], right[i] = strings.CutPrefix(name, ">")
		widths[i] = displaywidth.String(header[i])
		for _, row := range t.rows {
			if width := displaywidth.String(row[i]); width <= widestPadded {
				widths[i] = max(widths[i], width)
			}
		}
	}
	out := bufio.NewWriter(to)
	for _, row := range append([][]string{header}, t.rows...) {
		var line strings.Builder
		for i, cell := range row {
			padding := strings.Repeat(" ", max(widths[i]-displaywidth.String(cell), 0))
			if right[i] {
				cell = padding + cell
			} else {
				cell += padding
			}
			line.WriteString(cell + "  ")
		}
		if _, err := out.WriteString(strings.TrimRight(line.String(), " ") + "\n"); err != nil {
			return err
		}
	}
	return out.Flush()
}
