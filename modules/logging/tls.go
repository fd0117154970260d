package logging

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// TLS is how TLS is spoken with a collector. The zero value verifies it against the certificate authorities of the system.
type TLS struct {
	// ServerName is what the collector's certificate has to be for, a name or an IP address. Default: the host of its address.
	ServerName string `json:"server_name,omitempty"`

	// CA lists files with the certificates, in PEM form, of the authorities that the collector is verified against, in place of those of the
	// system. They are read when the log is opened. Default: none.
	CA []string `json:"ca,omitempty"`

	// ClientCertificate is shown to a collector that asks for one. Its files are read for each connection. Default: none.
	ClientCertificate *CertificateFiles `json:"client_certificate,omitempty"`

	// InsecureSkipVerify accepts any certificate: whoever sits between can read and change what is sent. Default: false.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// CertificateFiles are a certificate and its key, in PEM form.
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

// config reads the files. A nil t has the options of the zero value.
func (t *TLS) config(host string) (*tls.Config, error) {
	config := &tls.Config{ServerName: host}
	if t == nil {
		return config, nil
	}
	if t.InsecureSkipVerify && len(t.CA) > 0 {
		return nil, fmt.Errorf("ca: %q: expected no insecure_skip_verify, which accepts any certificate", t.CA[0])
	}
	repl := caddy.NewReplacer()
	if t.ServerName != "" {
		config.ServerName = repl.ReplaceKnown(t.ServerName, "")
	}
	config.InsecureSkipVerify = t.InsecureSkipVerify
	if config.ServerName == "" && !t.InsecureSkipVerify {
		return nil, errors.New(`server_name: "": expected a name or an IP address, because the collector's address has none`)
	}
	for _, file := range t.CA {
		if config.RootCAs == nil {
			config.RootCAs = x509.NewCertPool()
		}
		pem, err := os.ReadFile(repl.ReplaceKnown(file, ""))
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %q: expected a file with certificates in PEM form", file)
		}
	}
	if c := t.ClientCertificate; c != nil {
		certificate, key := repl.ReplaceKnown(c.Certificate, ""), repl.ReplaceKnown(c.Key, "")
		if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
			return nil, fmt.Errorf("client_certificate: %q, %q: %w", c.Certificate, c.Key, err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certificate, key)
			return &pair, err
		}
	}
	return config, nil
}

// tlsOption is a block of TLS in a Caddyfile.
func tlsOption(to **TLS) caddyfile.Option {
	return caddyfile.Option{
		Name: "tls",
		Set:  func([]string) error { *to = new(TLS); return nil },
		Block: []caddyfile.Option{
			{Name: "server_name", Min: 1, Max: 1, Set: func(args []string) error { (*to).ServerName = args[0]; return nil }},
			{Name: "ca", Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
				(*to).CA = append((*to).CA, args...)
				return nil
			}},
			{Name: "client_certificate", Min: 2, Max: 2, Set: func(args []string) error {
				(*to).ClientCertificate = &CertificateFiles{args[0], args[1]}
				return nil
			}},
			{Name: "insecure_skip_verify", Set: func([]string) error { (*to).InsecureSkipVerify = true; return nil }},
		},
	}
}
