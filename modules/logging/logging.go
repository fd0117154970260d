// Package logging provides the log writer `queued`, which puts a queue before any other one.
package logging

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

func init() { caddy.RegisterModule(new(Writer)) }

// Writer is the log writer `queued`. What Portgate logs passes a queue in any case. What Caddy and other modules log does
// not: where such a log takes nothing, because it is a pipe that nobody reads or a collector that stalls, the admin API,
// reloads and the end of the process wait for it for good. With this writer before it they don't: lines wait in a queue,
// and those that find 10000 waiting are dropped, counted by the metric log_dropped_total and reported.
type Writer struct {
	// Writer is the log writer that gets the lines. Required.
	Writer json.RawMessage `json:"writer,omitempty" caddy:"namespace=caddy.logging.writers inline_key=output"`

	inner caddy.WriterOpener
}

// CaddyModule returns the Caddy module information.
func (*Writer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.queued", New: func() caddy.Module { return new(Writer) }}
}

// Provision loads the writer within.
func (w *Writer) Provision(ctx caddy.Context) error {
	if len(w.Writer) == 0 {
		return fmt.Errorf(`writer: expected a log writer such as {"output": "stdout"}`)
	}
	module, err := ctx.LoadModule(w, "Writer")
	if err != nil {
		return fmt.Errorf("writer: %w", err)
	}
	w.inner = module.(caddy.WriterOpener)
	return nil
}

// String returns what an operator knows the writer by.
func (w *Writer) String() string { return "queued " + w.inner.String() }

// WriterKey tells writers apart.
func (w *Writer) WriterKey() string { return "queued:" + w.inner.WriterKey() }

// OpenWriter opens the writer within.
func (w *Writer) OpenWriter() (io.WriteCloser, error) {
	inner, err := w.inner.OpenWriter()
	if err != nil {
		return nil, err
	}
	return logqueue.Writer(inner), nil
}

// UnmarshalCaddyfile sets up the writer from Caddyfile tokens. Syntax:
//
//	queued <writer> [<arguments>] {
//		<options of the writer>
//	}
func (w *Writer) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	d.Next()
	if !d.NextArg() {
		return d.Err("queued: expected a log writer such as stdout")
	}
	name := d.Val()
	info, err := caddy.GetModule("caddy.logging.writers." + name)
	if err != nil {
		return d.Errf("queued: %q: expected a log writer such as stdout", name)
	}
	module := info.New()
	if options, ok := module.(caddycaddyfile.Unmarshaler); ok {
		err = options.UnmarshalCaddyfile(d.NewFromNextSegment())
	} else if d.NextArg() { // stdout, stderr and discard
		err = d.Errf("queued: %s: %q: expected no value", name, d.Val())
	}
	if err != nil {
		return err
	}
	w.Writer = caddyconfig.JSONModuleObject(module, "output", name, nil)
	return nil
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (w *Writer) UnmarshalJSON(data []byte) error {
	type options Writer
	return caddyfile.UnmarshalJSON(data, (*options)(w))
}

// Interface guards
var (
	_ caddy.Provisioner          = (*Writer)(nil)
	_ caddy.WriterOpener         = (*Writer)(nil)
	_ caddycaddyfile.Unmarshaler = (*Writer)(nil)
	_ json.Unmarshaler           = (*Writer)(nil)
)
