package acl

import (
	"strings"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// keepDamaged keeps copies of values that can't be read, and returns what is wrong with them.
func (d *dynamic) keepDamaged(storage certmagic.Storage, damages []*damage) string {
	var all []string
	for _, found := range damages {
		text := found.Error()
		fields := []zap.Field{zap.Error(found)}
		if found.value != nil {
			key, err := found.keep(storage, strings.TrimPrefix(d.journal.name, listsFolder+"/"))
			if err == nil {
				text += "; a copy is in " + key
				fields = append(fields, zap.String("copy", key))
			} else {
				fields = append(fields, zap.NamedError("copy_error", err))
			}
		}
		d.log().Error("a stored list is damaged: what can be read of it is in force", fields...)
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// damage makes the list one that is not whole, until it is edited or accepted.
func (d *dynamic) damage(text string) {
	d.missing.Store(&text)
	d.damaged.Begin(zap.NewNop(), "") // said already, at a higher level
	collectors.damaged.WithLabelValues(d.name).Set(1)
}

// damages returns what is missing, or "".
func (d *dynamic) damages() string {
	if text := d.missing.Load(); text != nil {
		return *text
	}
	return ""
}

// mend is called when the list is stored, so that it can be read again.
func (d *dynamic) mend() {
	if d.missing.Swap(nil) != nil {
		d.damaged.End(d.log(), "a list that was damaged is stored anew")
		collectors.damaged.WithLabelValues(d.name).Set(0)
	}
}

// accept makes what a damaged list has all of it.
func (d *dynamic) accept() error {
	d.editing.Lock()
	number := d.noteAll()
	d.editing.Unlock()
	return d.save(number)
}
