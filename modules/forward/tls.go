package forward

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// TLS is how TLS is spoken with upstreams. The zero value verifies them against the certificate authorities of the system.
type TLS struct {
	// Off has bytes sent to an upstream as they are, where the handler speaks TLS with the others. Default: false.
	Off bool `json:"off,omitempty"`

	// ServerName is what the certificate of an upstream has to be for: a name, which is also asked for (SNI), or an IP address. Default: the
	// host of the upstream's address as configured. It is required where that has none: a unix socket, or an address with a placeholder of the
	// connection.
	ServerName string `json:"server_name,omitempty"`

	// CA lists files with the certificates, in PEM form, of the authorities that upstreams are verified against, in place of those
	// of the system. They are read again when they change. Default: none.
	CA []string `json:"ca,omitempty"`

	// ClientCertificate is shown to upstreams that ask for one. Default: none.
	ClientCertificate *CertificateFiles `json:"client_certificate,omitempty"`

	// InsecureSkipVerify accepts any certificate: whoever sits between can read and change what is sent. Default: false.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`

	// ALPN lists the protocols that are offered, best first, such as `h2`. Default: none.
	ALPN []string `json:"alpn,omitempty"`
}

// CertificateFiles are a certificate and its key, in PEM form. They are read again when they change.
type CertificateFiles struct {
	// Certificate is the file of the certificate, with those that lead from it to an authority behind it.
	Certificate string `json:"certificate"`

	// Key is the file of the private key.
	Key string `json:"key"`
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (t *TLS) UnmarshalJSON(data []byte) error {
	type options TLS
	return caddyfile.UnmarshalJSON(data, (*options)(t))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (c *CertificateFiles) UnmarshalJSON(data []byte) error {
	type options CertificateFiles
	return caddyfile.UnmarshalJSON(data, (*options)(c))
}

// check refuses what is wrong whatever the files have in them.
func (t *TLS) check() error {
	if t == nil {
		return nil
	}
	given := t.ServerName != "" || len(t.CA) > 0 || t.ClientCertificate != nil || t.InsecureSkipVerify || len(t.ALPN) > 0
	if t.Off && given {
		return errors.New("off: expected no other option, because there is no TLS then")
	}
	if t.InsecureSkipVerify && len(t.CA) > 0 {
		return fmt.Errorf("ca: %q: expected no insecure_skip_verify, which accepts any certificate", t.CA[0])
	}
	if err := checkServerName(t.ServerName); err != nil {
		return fmt.Errorf("server_name: %w", err)
	}
	for _, file := range t.CA {
		if file == "" {
			return errors.New(`ca: "": expected the path of a file`)
		}
	}
	if c := t.ClientCertificate; c != nil && (c.Certificate == "" || c.Key == "") {
		return fmt.Errorf("client_certificate: %q, %q: expected the path of a certificate and that of its key", c.Certificate, c.Key)
	}
	for _, name := range t.ALPN {
		if err := checkProtocol(name); err != nil {
			return fmt.Errorf("alpn: %w", err)
		}
	}
	return nil
}

// checkServerName takes placeholders as they are: those of the environment are replaced later.
func checkServerName(name string) error {
	if name == "" || strings.Contains(name, "{") {
		return nil
	}
	addr, err := upstream.Parse(net.JoinHostPort(name, "1"))
	if err != nil || addr.Host != name {
		return fmt.Errorf("%q: expected a name or an IP address", name)
	}
	return nil
}

// checkProtocol keeps to the lengths of RFC 7301.
func checkProtocol(name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("%q: expected the name of a protocol, such as h2, of 1 to 255 bytes", name)
	}
	return nil
}

// over returns the options of an upstream: its own, and the handler's where it has none of a kind. It returns nil for no TLS.
func (t *TLS) over(handlers *TLS) *TLS {
	if t == nil {
		t = handlers
	}
	if t == nil || t.Off {
		return nil
	}
	merged := *t
	if handlers == nil || handlers.Off || t == handlers {
		return &merged
	}
	if merged.ServerName == "" {
		merged.ServerName = handlers.ServerName
	}
	if len(merged.CA) == 0 && !merged.InsecureSkipVerify {
		merged.CA, merged.InsecureSkipVerify = handlers.CA, handlers.InsecureSkipVerify
	}
	if merged.ClientCertificate == nil {
		merged.ClientCertificate = handlers.ClientCertificate
	}
	if len(merged.ALPN) == 0 {
		merged.ALPN = handlers.ALPN
	}
	return &merged
}

// serverName returns what the certificate of an upstream has to be for.
func (t *TLS) serverName(u *upstream.Upstream) (string, error) {
	if t.ServerName != "" {
		name := caddy.NewReplacer().ReplaceKnown(t.ServerName, "")
		if err := checkServerName(name); err != nil || name == "" || strings.Contains(name, "{") {
			return "", fmt.Errorf("server_name: %q, which is %q: expected a name or an IP address", t.ServerName, name)
		}
		return withoutZone(name), nil
	}
	switch {
	case t.InsecureSkipVerify && (u.Dynamic || u.Addr.Network == "unix"):
		return "", nil
	case u.Dynamic:
		return "", fmt.Errorf("expected a server_name, because the address %q has a placeholder", u.Name)
	case u.Addr.Network == "unix":
		return "", fmt.Errorf("expected a server_name, because %q is a unix socket", u.Name)
	case u.Addr.Host == "":
		return "localhost", nil
	}
	return withoutZone(u.Addr.Host), nil
}

// withoutZone removes the zone of an IP address, which no certificate has.
func withoutZone(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	return host
}

// checkTLS refuses TLS where datagrams are accepted.
func (h *Handler) checkTLS(listen []caddy.NetworkAddress) error {
	at := slices.IndexFunc(listen, func(addr caddy.NetworkAddress) bool { return gate.Datagrams(addr.Network) })
	if at < 0 {
		return nil
	}
	const expected = "expected listen addresses of TCP or unix sockets, because TLS needs a stream, but there is %q"
	if h.TLS != nil && !h.TLS.Off {
		return fmt.Errorf("tls: "+expected, listen[at].String())
	}
	for i := range h.Upstreams {
		if t := &h.Upstreams[i]; t.TLS != nil && !t.TLS.Off {
			return fmt.Errorf("upstream: %q: tls: "+expected, t.Address, listen[at].String())
		}
	}
	return nil
}

// identityFiles returns the files that the options name.
func (t *TLS) identityFiles() (files identityFiles) {
	repl := caddy.NewReplacer()
	paths := make([]string, len(t.CA))
	for i, path := range t.CA {
		paths[i] = repl.ReplaceKnown(path, "")
	}
	files.ca = strings.Join(paths, "\n")
	if c := t.ClientCertificate; c != nil {
		files.certificate, files.key = repl.ReplaceKnown(c.Certificate, ""), repl.ReplaceKnown(c.Key, "")
	}
	return files
}

// resumable is how many upstreams' sessions of TLS are kept, to shorten the next handshakes: one for each address of a name.
const resumable = 16

// encryption speaks TLS with one upstream.
type encryption struct {
	files   *identity // nil where there are none
	base    tls.Config
	written string // the options and the server name
	last    atomic.Pointer[configOf]
}

// configOf is a config, and the content of files that it was made of.
type configOf struct {
	*material
	config *tls.Config
}

// newEncryption returns what speaks TLS with an upstream that has to be serverName. files may be nil.
func newEncryption(t *TLS, serverName string, files *identity) *encryption {
	written, _ := json.Marshal(t)                                                             // strings and a bool
	return &encryption{files: files, written: serverName + string(written), base: tls.Config{ //nolint:gosec // Go's own default is TLS 1.2 and later
		ServerName: serverName, NextProtos: t.ALPN, InsecureSkipVerify: t.InsecureSkipVerify,
	}}
}

// wrap implements Wrap of a [relay.Way].
func (e *encryption) wrap(ctx context.Context, conn net.Conn) (net.Conn, error) {
	client := tls.Client(conn, e.config())
	if err := client.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return client, nil
}

// config returns the config for a handshake. Files that have changed make another one, with which no session of TLS is resumed that
// was begun with what they had before.
func (e *encryption) config() *tls.Config {
	var now *material
	if e.files != nil {
		now = e.files.latest()
	}
	last := e.last.Load()
	if last != nil && last.material == now {
		return last.config
	}
	next := &configOf{now, e.base.Clone()}
	next.config.ClientSessionCache = tls.NewLRUClientSessionCache(resumable)
	if now != nil {
		next.config.RootCAs = now.authorities
		if now.own != nil {
			next.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return now.own, nil }
		}
	}
	if !e.last.CompareAndSwap(last, next) {
		return e.config()
	}
	return next.config
}

// Interface guards
var (
	_ json.Unmarshaler = (*TLS)(nil)
	_ json.Unmarshaler = (*CertificateFiles)(nil)
)
