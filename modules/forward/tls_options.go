package forward

import (
	"fmt"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// tlsOption is TLS to upstreams in a Caddyfile: of the handler, or of one upstream.
func tlsOption(of func() **TLS) caddyfile.Option {
	now := func() *TLS { return *of() }
	return caddyfile.Option{
		Name: "tls", Max: 1,
		Set: func(args []string) error {
			*of() = new(TLS)
			if len(args) == 0 {
				return nil
			}
			if args[0] != "off" {
				return fmt.Errorf("%q: expected off, or options in a block", args[0])
			}
			now().Off = true
			return nil
		},
		Block: []caddyfile.Option{
			value("server_name", func(arg string) error {
				now().ServerName = arg
				if arg == "" {
					return fmt.Errorf("%q: expected a name or an IP address", arg)
				}
				return checkServerName(arg)
			}),
			{Name: "ca", Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
				now().CA = append(now().CA, args...)
				return nil
			}},
			{Name: "client_certificate", Min: 2, Max: 2, Values: "the file of a certificate and that of its key", Set: func(args []string) error {
				now().ClientCertificate = &CertificateFiles{Certificate: args[0], Key: args[1]}
				return nil
			}},
			{Name: "insecure_skip_verify", Set: func([]string) error {
				now().InsecureSkipVerify = true
				return nil
			}},
			{Name: "alpn", Min: 1, Max: -1, Set: func(args []string) error {
				now().ALPN = args
				for _, name := range args {
					if err := checkProtocol(name); err != nil {
						return err
					}
				}
				return nil
			}},
		},
	}
}
