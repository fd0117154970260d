package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// target is what a workload goes through: a proxy, or nothing at all.
type target struct {
	name    string
	version func(programs) string
	// command writes the configuration into dir and returns what to start; nil: the client talks to the backend itself.
	command func(c start) ([]string, error)
	udp     bool   // it forwards UDP as well
	refuses []kind // the work that it can refuse
	logs    bool   // it can write an entry for each connection to a file
}

// does says whether the target is measured with the workload.
func (t target) does(w workload) bool {
	switch {
	case t.name == capped:
		return isBulk(w.kind)
	case t.name == guarded:
		return w.network == tcp && (w.kind == closes || w.kind == idle)
	case w.kind == logged:
		return t.logs
	case w.kind.refused():
		return slices.Contains(t.refuses, w.kind)
	case w.kind == idle && t.command == nil:
		return false
	default:
		return w.network == tcp || t.udp
	}
}

// start is what a proxy needs to know.
type start struct {
	programs
	listen   endpoint
	backend  endpoint
	others   []endpoint // two more of the backend
	sessions int        // the most there will be, as the limit of open files allows
	dir      string     // the proxy's own
	log      bool       // it writes an access log
}

// programs are the paths of what is compared.
type programs struct{ caddy, haproxy, nginx string }

// ours, the two that it is compared with, and the others.
const (
	portgate = "Portgate"
	capped   = "Portgate with a bandwidth limit" // far above what the machine can do
	guarded  = "Portgate with three upstreams, health checks and a breaker"
	haproxy  = "HAProxy"
	nginx    = "nginx"
	caddyL4  = "caddy-l4"
	direct   = "direct"
)

// variants are Portgate with more options. They are compared with Portgate without them.
var variants = []string{capped, guarded}

// targets returns all of them. None writes an access log, unless that is what is measured, and each ends a session after 10 minutes of silence, as far as it can.
func targets() []target {
	return []target{
		{portgate, caddyVersion, portgateCommand, true, []kind{denied, limited}, true},
		{capped, caddyVersion, cappedCommand, false, nil, false},
		{guarded, caddyVersion, guardedCommand, false, nil, false},
		{haproxy, haproxyVersion, haproxyCommand, false, []kind{denied, limited}, true},
		{nginx, nginxVersion, nginxCommand, true, []kind{denied}, true},
		{caddyL4, caddyL4Version, caddyL4Command, true, []kind{denied}, false},
		{direct, func(programs) string { return "no proxy" }, nil, true, nil, false},
	}
}

// findPrograms looks for the peers also where not everybody's PATH leads.
func findPrograms(caddy string) (programs, error) {
	find := func(name string) (string, error) {
		for _, dir := range []string{"", "/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return filepath.Abs(path)
			}
		}
		return "", fmt.Errorf("%s is not installed; `make bench` does that", name)
	}
	var p programs
	var errs [3]error
	p.caddy, errs[0] = filepath.Abs(caddy)
	p.haproxy, errs[1] = find("haproxy")
	p.nginx, errs[2] = find("nginx")
	return p, errors.Join(errs[:]...)
}

type object map[string]any

// everybody is the prefix that all clients are in, to be denied.
const everybody = "127.0.0.0/8"

// portgateCommand has its clients share one address, and lifts the cap on the UDP sessions that one may have.
func portgateCommand(c start) ([]string, error) {
	gate := func(address netip.AddrPort) string { return fmt.Sprint("gate+tcp/", address) }
	toTCP := forward(c.backend.tcp.String())
	acl := object{"handler": "acl", "rules": []object{{"deny": []string{everybody}}}}
	rateLimit := object{"handler": "rate_limit", "connections": []object{{"rate": "1/h", "burst": 1}}}
	return caddyCommand(c, object{
		"portgate": object{"udp_max_sessions_per_client": c.sessions, "access_log": object{"queue": 1_000_000}},
		"layer4": object{"servers": object{
			tcp:       serve(gate(c.listen.tcp), toTCP),
			udp:       serve(fmt.Sprint("gate+udp/", c.listen.udp), forward(fmt.Sprint("udp/", c.backend.udp))),
			"denied":  serve(gate(c.listen.denied), acl, toTCP),
			"limited": serve(gate(c.listen.limited), rateLimit, toTCP),
		}},
	})
}

func cappedCommand(c start) ([]string, error) {
	rateLimit := object{"handler": "rate_limit", "bandwidth": []object{{"direction": "both", "rate": "1TB/s"}}}
	return caddyCommand(c, object{"layer4": object{"servers": object{
		tcp: serve(fmt.Sprint("gate+tcp/", c.listen.tcp), rateLimit, forward(c.backend.tcp.String())),
	}}})
}

func guardedCommand(c start) ([]string, error) {
	handler := forward(c.backend.tcp.String())
	delete(handler, "to")
	handler["upstreams"] = []object{
		{"address": c.backend.tcp.String(), "weight": 5}, {"address": c.others[0].tcp.String(), "weight": 3}, {"address": c.others[1].tcp.String()},
	}
	handler["health_check"] = object{"type": "tcp"}
	handler["breaker"] = object{"when": "errors 0.5"}
	return caddyCommand(c, object{"layer4": object{"servers": object{tcp: serve(fmt.Sprint("gate+tcp/", c.listen.tcp), handler)}}})
}

func forward(to string) object {
	return object{"handler": "forward", "to": []string{to}, "idle_timeout": "10m"}
}

func caddyL4Command(c start) ([]string, error) {
	proxy := func(network string, listen, to netip.AddrPort) object {
		server := serve(fmt.Sprint(network, "/", listen), object{"handler": "proxy", "upstreams": []object{{"dial": []string{fmt.Sprint(network, "/", to)}}}})
		server["idle_timeout"] = "10m" // of UDP sessions
		return server
	}
	deny := proxy(tcp, c.listen.denied, c.backend.tcp)
	deny["routes"] = append([]object{{
		"match":  []object{{"remote_ip": object{"ranges": []string{everybody}}}},
		"handle": []object{{"handler": "close"}},
	}}, deny["routes"].([]object)...)
	return caddyCommand(c, object{"layer4": object{"servers": object{
		tcp:      proxy(tcp, c.listen.tcp, c.backend.tcp),
		udp:      proxy(udp, c.listen.udp, c.backend.udp),
		"denied": deny,
	}}})
}

// serve returns a server with one route for everybody.
func serve(listen string, handlers ...object) object {
	return object{"listen": []string{listen}, "routes": []object{{"handle": handlers}}}
}

// logFile is where a proxy writes its access log, in its folder: an entry with what each of them tells of a connection, and unbuffered, so that
// it is there when the connection has ended.
const logFile = "access.log"

// caddyCommand runs the binary under test.
func caddyCommand(c start, apps object) ([]string, error) {
	logs := object{"default": object{"level": "WARN", "exclude": []string{"layer4.log.access"}}}
	if c.log {
		logs["access"] = object{
			"include": []string{"layer4.log.access"},
			"writer":  object{"output": "file", "filename": filepath.Join(c.dir, logFile), "roll": false}, "encoder": object{"format": "json"},
		}
	}
	config, err := json.MarshalIndent(object{
		"admin":   object{"disabled": true, "config": object{"persist": false}},
		"logging": object{"logs": logs},
		"apps":    apps,
	}, "", "\t")
	if err != nil {
		return nil, err
	}
	path, err := writeConfig(c.dir, string(config))
	return []string{c.caddy, "run", "--config", path}, err
}

// haproxyCommand has the access log, which goes to stdout there, redirected by a shell.
func haproxyCommand(c start) ([]string, error) {
	log := ""
	if c.log {
		log = "log stdout format raw local0 info\n  option tcplog"
	}
	path, err := writeConfig(c.dir, fmt.Sprintf(`global
  maxconn %d
  maxpipes 64
defaults
  mode tcp
  option splice-auto
  %s
  timeout connect 3s
  timeout client 10m
  timeout server 10m
frontend in
  bind %s
  default_backend out
frontend denied
  bind %s
  tcp-request connection reject if { src %s }
  default_backend out
frontend limited
  bind %s
  stick-table type ip size 1m expire 2h store conn_rate(1h)
  tcp-request connection track-sc0 src
  tcp-request connection reject if { sc0_conn_rate gt 1 }
  default_backend out
backend out
  server backend %s
`, c.sessions, log, c.listen.tcp, c.listen.denied, everybody, c.listen.limited, c.backend.tcp))
	if c.log {
		return []string{"/bin/sh", "-c", `exec "$0" -db -f "$1" > "$2"`, c.haproxy, path, filepath.Join(c.dir, logFile)}, err
	}
	return []string{c.haproxy, "-db", "-f", path}, err
}

// nginxCommand has only failures logged that nginx can't go on from, as it logs each client that is denied as an error.
func nginxCommand(c start) ([]string, error) {
	load := ""
	for _, module := range []string{"/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"} {
		if _, err := os.Stat(module); err == nil { // else it is compiled in
			load = "load_module " + module + ";"
			break
		}
	}
	log := "access_log off;"
	if c.log {
		log = `log_format sessions '$time_iso8601 $remote_addr $remote_port $server_addr $server_port $protocol $status $bytes_received $bytes_sent ' ` +
			`'$session_time $upstream_addr $upstream_connect_time';` + "\n  access_log " + logFile + " sessions;"
	}
	path, err := writeConfig(c.dir, fmt.Sprintf(`%s
worker_processes %d;
daemon off;
pid nginx.pid;
error_log stderr crit;
events { worker_connections %d; }
stream {
  proxy_connect_timeout 3s;
  proxy_timeout 10m;
  %s
  server {
    listen %s reuseport;
    proxy_pass %s;
  }
  server {
    listen %s udp reuseport;
    proxy_pass %s;
  }
  server {
    listen %s reuseport;
    deny %s;
    proxy_pass %s;
  }
}
`, load, runtime.NumCPU(), 2*c.sessions, log, c.listen.tcp, c.backend.tcp, c.listen.udp, c.backend.udp, c.listen.denied, everybody, c.backend.tcp))
	return []string{c.nginx, "-p", c.dir, "-c", path, "-e", "stderr"}, err
}

func writeConfig(dir, text string) (string, error) {
	path := filepath.Join(dir, "config")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// instance is a running target.
type instance struct {
	target
	address endpoint
	process *process // nil for direct
	dir     string
}

// launch starts the target and waits until a byte makes its way through it and back, on each network, and until it refuses what it
// shall.
func (t target) launch(ctx context.Context, c start) (*instance, error) {
	i := &instance{target: t, address: c.backend}
	if t.command == nil {
		return i, nil
	}
	if err := i.launch(ctx, c); err != nil {
		said := ""
		if i.process != nil {
			said = "\n" + i.process.said()
		}
		i.stop()
		return nil, fmt.Errorf("%s: %w%s", t.name, err, said)
	}
	return i, nil
}

func (i *instance) launch(ctx context.Context, c start) (err error) {
	if i.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return err
	}
	// nginx's workers have another user than root, and their working directory is here.
	if err := os.Chmod(i.dir, 0o755); err != nil {
		return err
	}
	c.dir = i.dir
	i.address = c.listen
	command, err := i.command(c)
	if err != nil {
		return err
	}
	if i.process, err = startProcess(i.dir, command...); err != nil {
		return err
	}
	return i.awaitReady(ctx)
}

// startTimeout bounds the start of a proxy on a busy machine.
const startTimeout = 20 * time.Second

func (i *instance) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := i.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-i.process.exited:
			return fmt.Errorf("it ended while starting: %v", i.process.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("it is not ready after %v: %w", startTimeout, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (i *instance) probe(ctx context.Context) error {
	err := probe(ctx, tcp, i.address.tcp)
	if err == nil && i.udp {
		err = probe(ctx, udp, i.address.udp)
	}
	for _, kind := range i.refuses {
		if err == nil {
			err = probeRefusal(ctx, i.address.of(workload{network: tcp, kind: kind}))
		}
	}
	return err
}

// probeRefusal wants a connection to be taken and ended. A rate lets the first one in, for which the answer is an error here, and then
// no other.
func probeRefusal(ctx context.Context, address netip.AddrPort) error {
	switch err := probe(ctx, tcp, address); {
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return nil
	case err != nil:
		return err
	default:
		return fmt.Errorf("%v: expected to be refused", address)
	}
}

// probe sends one byte and wants it back.
func probe(ctx context.Context, network string, address netip.AddrPort) error {
	conn, err := new(net.Dialer).DialContext(ctx, network, address.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{modeEcho}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

func (i *instance) stop() {
	i.process.stop()
	if i.dir != "" {
		os.RemoveAll(i.dir)
	}
}

func caddyVersion(p programs) string {
	return "this checkout, in Caddy " + moduleVersion(p.caddy, "github.com/caddyserver/caddy/v2")
}

func caddyL4Version(p programs) string { return moduleVersion(p.caddy, "github.com/mholt/caddy-l4") }

func haproxyVersion(p programs) string { return versionOf(p.haproxy, "HAProxy version ") }

func nginxVersion(p programs) string { return versionOf(p.nginx, "nginx version: nginx/") }
