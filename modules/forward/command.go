package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/mholt/caddy-l4/layer4"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "forward",
		Usage: "--from <address> --to <upstream> [--to <upstream>] [--backup <upstream>] [--lb-policy <policy>] [--health-check <check>] [--idle-timeout <duration>] [--proxy-protocol <version>] [--access-log] [--debug]",
		Short: "Forwards a TCP or UDP port",
		Long: `
Forwards a TCP or UDP port to one or more upstreams, without a config file.

--from is the address to listen on: a port with or without a host, or a range of
ports. Its network is gate+tcp unless another one is named; udp is gate+udp,
udp4 is gate+udp4, and so on. gate+fd/3 is a socket that systemd has opened.

--to is an upstream: host:port, or unix//path for a unix socket. Repeat it for
more; connections are dealt out in turn, unless --lb-policy names another way,
and where one can't be reached the next is tried. A range of ports needs a range
of as many ports in --from.

--backup is an upstream that gets connections only while too few of those after
--to can be reached. Repeat it for more.

--lb-policy is round_robin, least_conn, random, "random_choose <n>", first or
ip_hash.

--health-check checks upstreams without a connection of a client: tcp, "http /path",
"http /path 200", "send PING\r\n expect ^\+PONG", "dns example.com" or "udp 00".
An upstream whose checks fail is tried last.

--proxy-protocol is v1 or v2: upstreams get the client's address in a header of
the PROXY protocol, which they must expect. For UDP it is v2, with the header in
each datagram, or "v2 first", with the header in the first one of a session.

The admin API is off. What is not an option here is left at its default; for more
use a config with the "forward" handler.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Example = `  caddy forward --from :8080 --to 192.168.1.100:9000
  caddy forward --from 127.0.0.1:5432 --to db1:5432 --to db2:5432 --idle-timeout 1h
  caddy forward --from :5432 --to db1:5432 --to db2:5432 --backup db3:5432 --lb-policy least_conn
  caddy forward --from :7000-7010 --to 10.0.0.5:7000-7010 --access-log
  caddy forward --from :3306 --to unix//run/mysqld/mysqld.sock
  caddy forward --from udp/:5353 --to udp/9.9.9.9:53`
			cmd.Flags().StringP("from", "f", "", "Address to listen on")
			cmd.Flags().StringArrayP("to", "t", nil, "Upstream to forward to; may be repeated")
			cmd.Flags().StringArrayP("backup", "b", nil, "Upstream to forward to while others are out; may be repeated")
			cmd.Flags().StringP("lb-policy", "", "", "How the upstream of a connection is chosen (default round_robin)")
			cmd.Flags().StringP("health-check", "", "", "How upstreams are checked, such as tcp or \"http /healthz\" (default not at all)")
			cmd.Flags().StringP("idle-timeout", "", "", "End a session in which nothing has moved for so long; 0 is never (default 10m, and 60s for UDP)")
			cmd.Flags().StringP("proxy-protocol", "", "", "Tell upstreams the client's address in a PROXY protocol header: v1 or v2 (default none)")
			cmd.Flags().BoolP("access-log", "", false, "Write an entry for each session")
			cmd.Flags().BoolP("debug", "v", false, "Write debug logs")
			cmd.Args = noArguments
			cmd.RunE = caddycmd.WrapCommandFuncForCobra(runForward)
		},
	})
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q: expected no argument besides the flags; a value of several words stands in quotes", args[0])
	}
	return nil
}

func runForward(flags caddycmd.Flags) (int, error) {
	caddy.TrapSignals()
	to, err := flags.GetStringArray("to")
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	backup, err := flags.GetStringArray("backup")
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	from, h, err := parseFlags(flagValues{
		from: flags.String("from"), to: to, backup: backup,
		lbPolicy: flags.String("lb-policy"), healthCheck: flags.String("health-check"), idleTimeout: flags.String("idle-timeout"),
		proxyProtocol: flags.String("proxy-protocol"),
	})
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if err := caddy.Run(commandConfig(from, h, flags.Bool("access-log"), flags.Bool("debug"))); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	fmt.Fprint(os.Stdout, describe(from, h))
	select {}
}

// flagValues are what a handler and its listen address are made of.
type flagValues struct {
	from        string
	to, backup  []string
	lbPolicy    string
	healthCheck string
	idleTimeout string

	proxyProtocol string
}

// parseFlags finds what is wrong with the flags before Caddy says it in the words of a config.
func parseFlags(flags flagValues) (caddy.NetworkAddress, *Handler, error) {
	addr, err := parseFrom(flags.from)
	if err != nil {
		return addr, nil, fmt.Errorf("--from: %w", err)
	}
	if len(flags.to) == 0 {
		return addr, nil, errors.New("--to: expected at least one upstream, such as 127.0.0.1:9000")
	}
	h := &Handler{To: flags.to, LBPolicy: flags.lbPolicy, ProxyProtocol: flags.proxyProtocol}
	for _, backup := range flags.backup {
		h.Upstreams = append(h.Upstreams, Target{Address: backup, Backup: true})
	}
	if flags.healthCheck != "" {
		if h.HealthCheck, err = parseHealthCheck(flags.healthCheck); err != nil {
			return addr, nil, fmt.Errorf("--health-check: %w", err)
		}
	}
	if flags.idleTimeout != "" {
		parsed, err := caddyfile.ParseDuration(flags.idleTimeout)
		if err != nil {
			return addr, nil, fmt.Errorf("--idle-timeout: %w", err)
		}
		h.IdleTimeout = &parsed
	}
	if err := h.applyDefaults(); err != nil {
		return addr, nil, asFlag(err)
	}
	upstreams, err := h.parseUpstreams("")
	if err != nil {
		return addr, nil, asFlag(err)
	}
	if err := h.checkProxyProtocol([]caddy.NetworkAddress{addr}); err != nil {
		return addr, nil, asFlag(err)
	}
	for _, part := range h.parts(upstreams) {
		if _, err := matchAddrs(part.of, []caddy.NetworkAddress{addr}); err != nil {
			return addr, nil, asFlag(fmt.Errorf("%s: %w", part.option, err))
		}
	}
	return addr, h, nil
}

// asFlag returns the error of an option as one of the flag that has set it.
func asFlag(err error) error {
	for option, flag := range map[string]string{"upstream: ": "--backup: ", "to: ": "--to: ", "lb_policy: ": "--lb-policy: ", "proxy_protocol: ": "--proxy-protocol: ", "health_check: ": "--health-check: "} {
		if rest, is := strings.CutPrefix(err.Error(), option); is {
			return errors.New(flag + rest)
		}
	}
	return err
}

func parseFrom(from string) (caddy.NetworkAddress, error) {
	if from == "" {
		return caddy.NetworkAddress{}, errors.New("expected an address to listen on, such as :8080")
	}
	addr, err := caddy.ParseNetworkAddressWithDefaults(from, "gate+tcp", 0)
	inherited := caddy.IsFdNetwork(strings.TrimPrefix(addr.Network, "gate+"))
	noPort := addr.StartPort == 0 && !addr.IsUnixNetwork() && !inherited
	noPath := addr.IsUnixNetwork() && addr.Host == ""
	noNetwork := strings.ContainsAny(addr.Network, ":.[]") // what stands before the first slash of a URL
	if err != nil || noPort || noPath || noNetwork {
		return addr, fmt.Errorf("%q: expected an address to listen on, such as :8080", from)
	}
	if n, ok := gate.Parse("gate+" + addr.Network); ok && n.Transport == "udp" {
		addr.Network = n.Name
	}
	return addr, nil
}

func commandConfig(from caddy.NetworkAddress, h *Handler, accessLog, debug bool) *caddy.Config {
	app := layer4.App{Servers: map[string]*layer4.Server{"forward": {
		Listen: []string{from.String()},
		Routes: layer4.RouteList{{
			HandlersRaw: []json.RawMessage{caddyconfig.JSONModuleObject(h, "handler", "forward", nil)},
		}},
	}}}
	log := &caddy.CustomLog{BaseLog: caddy.BaseLog{WriterRaw: output()}}
	if !accessLog {
		log.Exclude = []string{"layer4.log.access"}
	}
	if debug {
		log.Level = zap.DebugLevel.CapitalString()
	}
	return &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: new(false)}},
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{caddy.DefaultLoggerName: log}},
		AppsRaw: caddy.ModuleMap{"layer4": caddyconfig.JSON(app, nil)},
	}
}

// output is where the command logs to: a queue in front of stderr, so that it serves and ends where nobody reads that. A terminal
// has none, because Caddy writes for people only where it knows that it writes to one.
func output() json.RawMessage {
	if stat, err := os.Stderr.Stat(); err == nil && stat.Mode()&os.ModeCharDevice != 0 {
		return nil
	}
	return json.RawMessage(`{"output":"queued","writer":{"output":"stderr"}}`)
}

// describe says what runs now.
func describe(from caddy.NetworkAddress, h *Handler) string {
	if gate.Datagrams(from.Network) {
		return fmt.Sprintf("listening on %s, forwarding to %s\ntimeouts: connect %s, idle %s, lifetime %s, grace period %s\n",
			from, destinations(h),
			h.limits.Connect, orNever(h.datagramLimits.Idle), orNever(h.limits.Lifetime), h.gracePeriod)
	}
	halfClose := "as idle"
	if h.limits.HalfClose > 0 {
		halfClose = h.limits.HalfClose.String()
	}
	return fmt.Sprintf("listening on %s, forwarding to %s\ntimeouts: connect %s, idle %s, half-close %s, lifetime %s, grace period %s\n",
		from, destinations(h),
		h.limits.Connect, orNever(h.limits.Idle), halfClose, orNever(h.limits.Lifetime), h.gracePeriod)
}

func destinations(h *Handler) string {
	all := strings.Join(h.To, ", ")
	for i, t := range h.Upstreams {
		if i == 0 {
			all += ", backup "
		} else {
			all += ", "
		}
		all += t.Address
	}
	return all
}

func orNever(limit time.Duration) string {
	if limit == 0 {
		return "never"
	}
	return limit.String()
}
