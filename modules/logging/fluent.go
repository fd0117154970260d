package logging

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/state"
	"github.com/portgate/caddy-portgate/modules/logging/delivery"
	"github.com/portgate/caddy-portgate/modules/logging/fluent"
)

func init() { caddy.RegisterModule(new(FluentWriter)) }

// FluentWriter is the log writer `fluent`, which sends entries to Fluentd, Fluent Bit or another collector that accepts the Forward protocol.
// Nothing waits for it: entries wait in a queue, and are sent again until the collector has acknowledged them. Those that find the queue full
// are dropped, counted by the metric log_writer_dropped_total and reported.
type FluentWriter struct {
	// Address is that of the collector: host:port, or unix//path for a unix socket. The port is 24224 where there is none. Placeholders of the
	// environment are replaced. Required.
	Address string `json:"address,omitempty"`

	// Tag is what the collector knows the entries by. Default: portgate.
	Tag string `json:"tag,omitempty"`

	// SharedKey is the key of a collector that asks for one. Both sides prove that they know it; it encrypts nothing. Default: none.
	SharedKey Secret `json:"shared_key,omitempty"`

	// User and Password are for a collector that asks for them besides the shared key. Default: none.
	User     string `json:"user,omitempty"`
	Password Secret `json:"password,omitempty"`

	// NoAck takes entries for sent when they are written to the connection, for collectors that acknowledge nothing. What is on its way when a
	// connection breaks is lost then, and not counted. Default: false.
	NoAck bool `json:"no_ack,omitempty"`

	// TLS is how TLS is spoken with the collector. Default: no TLS.
	TLS *TLS `json:"tls,omitempty"`

	// Queue is how many entries may wait. They take 64 MiB at most. Default: 10000.
	Queue int `json:"queue,omitempty"`

	// FlushInterval is how long an entry waits at most for others to be sent with it. Default: 1s.
	FlushInterval *caddy.Duration `json:"flush_interval,omitempty"`

	// Timeout is how long an attempt to send may take, connecting and the acknowledgement included. Default: 10s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	client  fluent.Client
	options delivery.Options
	remote  *state.Ref[*remote]
}

// CaddyModule returns the Caddy module information.
func (*FluentWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.fluent", New: func() caddy.Module { return new(FluentWriter) }}
}

// defaultFluentPort is where Fluentd listens.
const defaultFluentPort = 24224

// Provision reads the options. It does not connect: a collector that is away keeps no config from being loaded.
func (w *FluentWriter) Provision(ctx caddy.Context) (err error) {
	if w.options, err = (sending{w.Queue, w.FlushInterval, w.Timeout}).options(); err != nil {
		return err
	}
	host, err := w.setAddress()
	if err != nil {
		return err
	}
	if w.TLS != nil {
		if w.client.TLS, err = w.TLS.config(host); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		w.client.TLS.MinVersion = tls.VersionTLS12
	}
	if err := w.setCredentials(); err != nil {
		return err
	}
	w.client.Tag, w.client.NoAck = w.Tag, w.NoAck
	if w.Tag == "" {
		w.client.Tag = "portgate"
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	w.remote, err = acquireRemote(w.WriterKey(), w.String(), func() delivery.Sender {
		client := w.client
		return &client
	}, w.options)
	return err
}

// Cleanup releases what sends.
func (w *FluentWriter) Cleanup() error { return w.remote.Release() }

// setAddress returns the host, which is empty for a unix socket.
func (w *FluentWriter) setAddress() (host string, err error) {
	const expected = `expected the address of a collector, such as 10.0.0.5:24224 or unix//run/fluent.sock`
	addr, err := caddy.ParseNetworkAddressWithDefaults(caddy.NewReplacer().ReplaceKnown(w.Address, ""), "tcp", defaultFluentPort)
	if err != nil {
		return "", fmt.Errorf("address: %q: %s", w.Address, expected)
	}
	switch {
	case addr.Network == "unix":
		w.client.Network, w.client.Address = addr.Network, addr.JoinHostPort(0)
		return "", nil
	case !strings.HasPrefix(addr.Network, "tcp"), addr.Host == "", addr.PortRangeSize() != 1:
		return "", fmt.Errorf("address: %q: %s", w.Address, expected)
	}
	w.client.Network, w.client.Address = addr.Network, addr.JoinHostPort(0)
	return addr.Host, nil
}

func (w *FluentWriter) setCredentials() (err error) {
	if w.client.SharedKey, err = w.SharedKey.value(); err != nil {
		return fmt.Errorf("shared_key: %w", err)
	}
	if w.client.Password, err = w.Password.value(); err != nil {
		return fmt.Errorf("password: %w", err)
	}
	w.client.User = caddy.NewReplacer().ReplaceKnown(w.User, "")
	if w.User != "" && w.SharedKey == "" {
		return fmt.Errorf("user: %q: expected a shared_key, because collectors ask for a user only after that", w.User)
	}
	if w.client.Hostname, err = os.Hostname(); err != nil {
		w.client.Hostname = "portgate"
	}
	return nil
}

// String returns what an operator knows the writer by.
func (w *FluentWriter) String() string {
	if w.client.Network == "unix" {
		return "fluent unix/" + w.client.Address
	}
	return "fluent " + w.client.Address
}

// GoString keeps secrets out of what may be printed of the writer.
func (w *FluentWriter) GoString() string { return w.String() }

// WriterKey tells writers apart.
func (w *FluentWriter) WriterKey() string {
	tlsOptions, _ := json.Marshal(w.TLS)
	return keyOf(w.String(), w.client.Tag, w.client.SharedKey, w.client.User, w.client.Password, w.NoAck, string(tlsOptions), w.options)
}

// OpenWriter returns what entries are written to. It does not fail.
func (w *FluentWriter) OpenWriter() (io.WriteCloser, error) {
	return &line{w.WriterKey(), w.String()}, nil
}

// UnmarshalCaddyfile sets up the writer from Caddyfile tokens. Syntax:
//
//	fluent <address> {
//		tag            <tag>
//		shared_key     <key>
//		user           <name> <password>
//		no_ack
//		tls {
//			server_name          <name>
//			ca                   <file>...
//			client_certificate   <certificate> <key>
//			insecure_skip_verify
//		}
//		queue          <count>
//		flush_interval <duration>
//		timeout        <duration>
//	}
func (w *FluentWriter) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	inline := func(args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%q: expected one address", strings.Join(args, " "))
		}
		w.Address = args[0]
		return nil
	}
	err := caddyfile.Unmarshal(d, inline, append([]caddyfile.Option{
		{Name: "tag", Min: 1, Max: 1, Set: func(args []string) error { w.Tag = args[0]; return nil }},
		secretOption("shared_key", "1 value", func(args []string) { w.SharedKey = Secret(args[0]) }, 1),
		secretOption("user", "a name and a password", func(args []string) { w.User, w.Password = args[0], Secret(args[1]) }, 2),
		caddyfile.Flag("no_ack", &w.NoAck),
		tlsOption(&w.TLS),
	}, sendingOptions(&w.Queue, &w.FlushInterval, &w.Timeout)...)...)
	if err == nil && w.Address == "" {
		return d.Err("fluent: expected the address of a collector, such as 10.0.0.5:24224")
	}
	return err
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (w *FluentWriter) UnmarshalJSON(data []byte) error {
	type options FluentWriter
	return caddyfile.UnmarshalJSON(data, (*options)(w))
}

// Interface guards
var (
	_ caddy.Provisioner          = (*FluentWriter)(nil)
	_ caddy.CleanerUpper         = (*FluentWriter)(nil)
	_ caddy.WriterOpener         = (*FluentWriter)(nil)
	_ caddycaddyfile.Unmarshaler = (*FluentWriter)(nil)
	_ json.Unmarshaler           = (*FluentWriter)(nil)
)
