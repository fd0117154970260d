package logqueue

import (
	"errors"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Logger returns the logger that ctx.Logger does, for use where nothing may block.
func Logger(ctx caddy.Context, module ...caddy.Module) *zap.Logger {
	return Wrap(ctx.Logger(module...))
}

// Default returns a logger of that name in the default log of the running config, for what outlives a config.
func Default(name string) *zap.Logger { return Wrap(caddy.Log().Named(name)) }

// Wrap makes a logger that never blocks of one that may.
func Wrap(log *zap.Logger) *zap.Logger { return wrap(log, other, otherLimit) }

// WrapAccess is Wrap for the access log, of which limit entries may wait for each destination.
func WrapAccess(log *zap.Logger, limit int) *zap.Logger { return wrap(log, access, limit) }

func wrap(log *zap.Logger, k kind, limit int) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(inner zapcore.Core) zapcore.Core {
		var cores []zapcore.Core
		for _, part := range parts(inner) {
			if already, ok := part.(*core); ok {
				part = already.Core
			}
			cores = append(cores, &core{part, destinationOf(part), k, limit})
		}
		return zapcore.NewTee(cores...)
	}))
}

// core is a core whose entries pass the queue of its destination.
type core struct {
	zapcore.Core
	to    destination
	kind  kind
	limit int
}

// With implements [zapcore.Core].
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.Core.With(fields), c.to, c.kind, c.limit}
}

// Check implements [zapcore.Core]. The core within is asked now: what it samples or leaves out never gets into the queue.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if inner := c.Core.Check(e, nil); inner != nil {
		return ce.AddCore(e, &checked{core: c, line: line{entry: inner}})
	}
	return ce
}

// checked is the core that one entry is written to.
type checked struct {
	*core
	line line
}

// Write implements [zapcore.Core].
func (c *checked) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.line.entry.Entry = e // with caller and stack, which were not known before
	c.line.fields = fields
	if c.kind != access { // whoever writes the access log makes them anew for each entry
		c.line.fields = slices.Clone(fields)
	}
	put(c.to, c.kind, c.limit, &c.line)
	return nil
}

// line is an entry of a core in the queue.
type line struct {
	entry  *zapcore.CheckedEntry
	fields []zapcore.Field
}

// write has the core within write the entry. An error is what zap says of it.
func (l *line) write() error {
	var caught caught
	l.entry.ErrorOutput = &caught
	l.entry.Write(l.fields...)
	return caught.err
}

// caught is where zap reports a write that fails.
type caught struct{ err error }

// Write implements [zapcore.WriteSyncer].
func (c *caught) Write(b []byte) (int, error) {
	text := strings.TrimSpace(string(b))
	if _, reason, ok := strings.Cut(text, " write error: "); ok { // behind the time
		text = reason
	}
	c.err = errors.New(text)
	return len(b), nil
}

// Sync implements [zapcore.WriteSyncer].
func (c *caught) Sync() error { return nil }
