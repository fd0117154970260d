package acl

import (
	"strings"
	"time"
)

// condition is what the API tells of a list that is read from somewhere.
type condition struct {
	Loaded      *time.Time `json:"loaded,omitempty"` // or found to be unchanged
	Lines       int        `json:"lines,omitempty"`
	BadLines    int        `json:"bad_lines,omitempty"`
	FirstBad    string     `json:"first_bad_line,omitempty"`
	MaskedLines int        `json:"masked_lines,omitempty"`
	FirstMasked string     `json:"first_masked_line,omitempty"`
	Error       string     `json:"error,omitempty"` // why the last good content is still in use
}

// condition returns how the list is.
func (l *list) condition() condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	loaded := l.confirmed.UTC().Truncate(time.Millisecond)
	c := condition{Loaded: &loaded, Lines: l.report.Lines, BadLines: l.report.Bad, MaskedLines: l.report.Masked, Error: l.failed}
	if len(l.report.First) > 0 {
		c.FirstBad = l.report.First[0].Error()
	}
	if l.report.Masked > 0 {
		c.FirstMasked = l.report.Mask.Error()
	}
	return c
}

// readLists returns the lists that are read from files, servers and databases, by their names in logs and metrics. It does not
// ask the pool for them, which waits for a list that is loaded for the first time.
func readLists() (all []summary) {
	for _, l := range collectors.all() {
		if !strings.HasPrefix(l.name, "list ") {
			all = append(all, summary{Name: l.name, Size: l.set.Load().Len(), condition: l.condition()})
		}
	}
	return all
}
