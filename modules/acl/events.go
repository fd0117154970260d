package acl

import (
	"net/netip"
	"strings"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/events"
)

// mostPrefixes is how many prefixes an event names.
const mostPrefixes = 20

// fields are those of an event about some prefixes. It is called with editing held, so that events come in the order of edits.
func (d *dynamic) fields(prefixes ...netip.Prefix) []zap.Field {
	fields := []zap.Field{zap.String("list", strings.TrimPrefix(d.name, "list ")), zap.Int("entries", len(prefixes))}
	if len(prefixes) == 1 {
		return append(fields, zap.Stringer("prefix", prefixes[0]))
	}
	return append(fields, zap.Stringers("prefixes", prefixes[:min(len(prefixes), mostPrefixes)]))
}

func (d *dynamic) tellAdded(e *entry) {
	fields := d.fields(e.Prefix)
	if e.Expires != nil {
		fields = append(fields, zap.Duration("ttl", max(e.Expires.Sub(d.clock.now()), 0)))
	}
	if e.Reason != "" {
		fields = append(fields, zap.String("reason", e.Reason))
	}
	if e.By != "" {
		fields = append(fields, zap.String("by", e.By))
	}
	events.Emit(events.Ban, events.Info, "an entry was put on a list", fields...)
}

func (d *dynamic) tellRemoved(prefix netip.Prefix) {
	events.Emit(events.Unban, events.Info, "an entry was taken off a list", d.fields(prefix)...)
}

func (d *dynamic) tellExpired(gone []netip.Prefix) {
	events.Emit(events.Unban, events.Info, "the time of entries of a list is over", append(d.fields(gone...), zap.Bool("expired", true))...)
}

// tellReplaced tells that the list has other entries than before.
func (d *dynamic) tellReplaced(before, entries int) {
	name, message := events.Ban, "the entries of a list were replaced"
	if entries == 0 {
		name, message = events.Unban, "all entries were taken off a list"
	}
	events.Emit(name, events.Info, message,
		zap.String("list", strings.TrimPrefix(d.name, "list ")), zap.Int("entries", entries), zap.Int("entries_before", before))
}
