package logging

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/fetch"
	"github.com/portgate/caddy-portgate/modules/internal/state"
	"github.com/portgate/caddy-portgate/modules/logging/bulk"
	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

func init() { caddy.RegisterModule(new(ElasticsearchWriter)) }

// ElasticsearchWriter is the log writer `elasticsearch`, which sends entries to Elasticsearch, or to another server that has its bulk API.
// Nothing waits for it: entries wait in a queue, and are sent again until the server has taken them. Those that find the queue full or that the
// server rejects are dropped, counted by the metric log_writer_dropped_total and reported.
type ElasticsearchWriter struct {
	// URL is that of the server, such as https://localhost:9200; /_bulk is appended to its path, and its query is kept. Placeholders of the
	// environment are replaced. Credentials have options of their own. Required.
	URL string `json:"url,omitempty"`

	// Index is the data stream, the index or the alias that entries go to. Default: logs-portgate-default.
	Index string `json:"index,omitempty"`

	// User and Password are sent with each request. Default: none.
	User     string `json:"user,omitempty"`
	Password Secret `json:"password,omitempty"`

	// APIKey is an API key in the form that Elasticsearch calls encoded, in place of a user. Default: none.
	APIKey Secret `json:"api_key,omitempty"`

	// TLS is how TLS is spoken with a server whose URL begins with https. Default: the zero value of its options.
	TLS *TLS `json:"tls,omitempty"`

	// Queue is how many entries may wait. They take 64 MiB at most. Default: 10000.
	Queue int `json:"queue,omitempty"`

	// FlushInterval is how long an entry waits at most for others to be sent with it. Default: 1s.
	FlushInterval *caddy.Duration `json:"flush_interval,omitempty"`

	// Timeout is how long a request may take. Default: 10s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	client  bulk.Client
	shown   string // the URL without its query
	options delivery.Options
	remote  *state.Ref[*remote]
}

// CaddyModule returns the Caddy module information.
func (*ElasticsearchWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.elasticsearch", New: func() caddy.Module { return new(ElasticsearchWriter) }}
}

// Provision reads the options. It makes no request: a server that is away keeps no config from being loaded.
func (w *ElasticsearchWriter) Provision(ctx caddy.Context) (err error) {
	if w.options, err = (sending{w.Queue, w.FlushInterval, w.Timeout}).options(); err != nil {
		return err
	}
	address, err := w.setURL()
	if err != nil {
		return err
	}
	if w.TLS != nil && address.Scheme != "https" {
		return fmt.Errorf("tls: expected a URL that begins with https, but there is %q", w.shown)
	}
	config, err := w.TLS.config(address.Hostname())
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	w.client.HTTP = &http.Client{
		Transport: &http.Transport{Proxy: fetch.Proxy, TLSClientConfig: config, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
		// A redirect would lead the credentials elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if w.client.Index = w.Index; w.Index == "" {
		w.client.Index = "logs-portgate-default"
	}
	if !indexName.MatchString(w.client.Index) {
		return fmt.Errorf(`index: %q: expected the name of a data stream, an index or an alias, in small letters`, w.Index)
	}
	if err := w.setCredentials(); err != nil {
		return err
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	w.remote, err = acquireRemote(w.WriterKey(), w.String(), func() delivery.Sender {
		return &bulk.Client{
			HTTP: w.client.HTTP, URL: w.client.URL, Authorization: w.client.Authorization, Index: w.client.Index, IDs: strings.ToLower(rand.Text()) + "-",
		}
	}, w.options)
	return err
}

// Cleanup releases what sends.
func (w *ElasticsearchWriter) Cleanup() error { return w.remote.Release() }

// indexName is what Elasticsearch allows, as far as it is of use.
var indexName = regexp.MustCompile(`^[\p{Ll}\p{Lo}0-9.][^A-Z\\/*?"<>| ,#:\x00-\x1f]{0,254}$`)

// setURL refuses a URL without quoting it where it has a password.
func (w *ElasticsearchWriter) setURL() (*url.URL, error) {
	address, err := url.Parse(caddy.NewReplacer().ReplaceKnown(w.URL, ""))
	if err == nil && address.User != nil {
		return nil, errors.New("url: expected no user and no password in it, but in the options user and password (in a Caddyfile basic_auth)")
	}
	if err != nil || address.Scheme != "http" && address.Scheme != "https" || address.Host == "" || address.Fragment != "" {
		return nil, caddyfile.WithoutPasswords(fmt.Errorf("url: %q: expected a URL such as https://localhost:9200", w.URL))
	}
	shown := *address
	shown.RawQuery = ""
	w.shown = shown.String()
	address = address.JoinPath("_bulk")
	w.client.URL = address.String()
	return address, nil
}

func (w *ElasticsearchWriter) setCredentials() error {
	password, err := w.Password.value()
	if err != nil {
		return fmt.Errorf("password: %w", err)
	}
	key, err := w.APIKey.value()
	if err != nil {
		return fmt.Errorf("api_key: %w", err)
	}
	user := caddy.NewReplacer().ReplaceKnown(w.User, "")
	switch {
	case w.APIKey != "" && (w.User != "" || w.Password != ""):
		return errors.New("api_key: expected no user besides")
	case w.Password == "" && w.User != "":
		return fmt.Errorf("user: %q: expected a password with it", w.User)
	case w.User == "" && w.Password != "":
		return errors.New("password: expected a user with it")
	case w.APIKey != "":
		w.client.Authorization = "ApiKey " + key
	case w.User != "":
		w.client.Authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	return nil
}

// String returns what an operator knows the writer by.
func (w *ElasticsearchWriter) String() string { return "elasticsearch " + w.shown }

// GoString keeps secrets out of what may be printed of the writer.
func (w *ElasticsearchWriter) GoString() string { return w.String() }

// WriterKey tells writers apart.
func (w *ElasticsearchWriter) WriterKey() string {
	tlsOptions, _ := json.Marshal(w.TLS)
	return keyOf(w.String(), w.client.URL, w.client.Index, w.client.Authorization, string(tlsOptions), w.options)
}

// OpenWriter returns what entries are written to. It does not fail.
func (w *ElasticsearchWriter) OpenWriter() (io.WriteCloser, error) {
	return &line{w.WriterKey(), w.String()}, nil
}

// UnmarshalCaddyfile sets up the writer from Caddyfile tokens. Syntax:
//
//	elasticsearch <url> {
//		index          <name>
//		basic_auth     <user> <password>
//		api_key        <key>
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
func (w *ElasticsearchWriter) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	inline := func(args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%q: expected one URL", strings.Join(args, " "))
		}
		w.URL = args[0]
		return nil
	}
	err := caddyfile.Unmarshal(d, inline, append([]caddyfile.Option{
		{Name: "index", Min: 1, Max: 1, Set: func(args []string) error { w.Index = args[0]; return nil }},
		secretOption("basic_auth", "a user and a password", func(args []string) { w.User, w.Password = args[0], Secret(args[1]) }, 2),
		secretOption("api_key", "1 value", func(args []string) { w.APIKey = Secret(args[0]) }, 1),
		tlsOption(&w.TLS),
	}, sendingOptions(&w.Queue, &w.FlushInterval, &w.Timeout)...)...)
	if err == nil && w.URL == "" {
		return d.Err("elasticsearch: expected the URL of a server, such as https://localhost:9200")
	}
	return err
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (w *ElasticsearchWriter) UnmarshalJSON(data []byte) error {
	type options ElasticsearchWriter
	return caddyfile.UnmarshalJSON(data, (*options)(w))
}

// Interface guards
var (
	_ caddy.Provisioner          = (*ElasticsearchWriter)(nil)
	_ caddy.CleanerUpper         = (*ElasticsearchWriter)(nil)
	_ caddy.WriterOpener         = (*ElasticsearchWriter)(nil)
	_ caddycaddyfile.Unmarshaler = (*ElasticsearchWriter)(nil)
	_ json.Unmarshaler           = (*ElasticsearchWriter)(nil)
)
