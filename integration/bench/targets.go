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
	"time"
)

// target is what a workload goes through: a proxy, or nothing at all.
type target struct {
	name    string
	version func(programs) string
	// command writes the configuration into dir and returns what to start; nil: the client talks to the backend itself.
	command func(c start) ([]string, error)
}

// start is what a proxy needs to know.
type start struct {
	programs
	dir      string
	port     int
	backend  netip.AddrPort
	sessions int // the most there will be, as the limit of open files allows
}

// programs are the paths of what is compared.
type programs struct{ caddy, haproxy, nginx string }

// ours, and the two that it is compared with.
const (
	portgate = "Portgate"
	haproxy  = "HAProxy"
	nginx    = "nginx"
	caddyL4  = "caddy-l4"
	direct   = "direct"
)

// targets returns all of them. None writes an access log, and each ends a session after 10 minutes of silence, as far as it can.
func targets() []target {
	return []target{
		{portgate, caddyVersion, caddyCommand("gate+tcp", func(backend string) object {
			return object{"handler": "forward", "to": []string{backend}, "idle_timeout": "10m"}
		})},
		{haproxy, haproxyVersion, haproxyCommand},
		{nginx, nginxVersion, nginxCommand},
		{caddyL4, caddyL4Version, caddyCommand("tcp", func(backend string) object {
			return object{"handler": "proxy", "upstreams": []object{{"dial": []string{backend}}}}
		})},
		{direct, func(programs) string { return "no proxy" }, nil},
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

// caddyCommand runs the binary under test with one server on the network and one handler.
func caddyCommand(network string, handler func(backend string) object) func(start) ([]string, error) {
	return func(c start) ([]string, error) {
		server := object{
			"listen": []string{fmt.Sprintf("%s/127.0.0.1:%d", network, c.port)},
			"routes": []object{{"handle": []object{handler(c.backend.String())}}},
		}
		config, err := json.MarshalIndent(object{
			"admin":   object{"disabled": true, "config": object{"persist": false}},
			"logging": object{"logs": object{"default": object{"level": "WARN", "exclude": []string{"layer4.log.access"}}}},
			"apps":    object{"layer4": object{"servers": object{"bench": server}}},
		}, "", "\t")
		if err != nil {
			return nil, err
		}
		path, err := writeConfig(c.dir, string(config))
		return []string{c.caddy, "run", "--config", path}, err
	}
}

func haproxyCommand(c start) ([]string, error) {
	path, err := writeConfig(c.dir, fmt.Sprintf(`global
  maxconn %d
  maxpipes 64
defaults
  mode tcp
  option splice-auto
  timeout connect 3s
  timeout client 10m
  timeout server 10m
frontend in
  bind 127.0.0.1:%d
  default_backend out
backend out
  server backend %s
`, c.sessions, c.port, c.backend))
	return []string{c.haproxy, "-db", "-f", path}, err
}

func nginxCommand(c start) ([]string, error) {
	load := ""
	for _, module := range []string{"/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"} {
		if _, err := os.Stat(module); err == nil { // else it is compiled in
			load = "load_module " + module + ";"
			break
		}
	}
	path, err := writeConfig(c.dir, fmt.Sprintf(`%s
worker_processes %d;
daemon off;
pid nginx.pid;
error_log stderr;
events { worker_connections %d; }
stream {
  server {
    listen 127.0.0.1:%d reuseport;
    proxy_pass %s;
    proxy_connect_timeout 3s;
    proxy_timeout 10m;
  }
}
`, load, runtime.NumCPU(), 2*c.sessions, c.port, c.backend))
	return []string{c.nginx, "-p", c.dir, "-c", path, "-e", "stderr"}, err
}

func writeConfig(dir, text string) (string, error) {
	path := filepath.Join(dir, "config")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// instance is a running target.
type instance struct {
	target
	address netip.AddrPort
	process *process // nil for direct
	dir     string
}

// launch starts the target and waits until a byte makes its way through it and back.
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
	i.address = netip.AddrPortFrom(c.backend.Addr(), uint16(c.port))
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
		err := probe(ctx, i.address)
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

// probe sends one byte and wants it back.
func probe(ctx context.Context, address netip.AddrPort) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address.String())
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
