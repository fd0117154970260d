package forward

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/hops"
)

// Unix sockets that lead to each other, or to a port that leads back: whoever connects is turned away, after a few hops.
func TestLoopThroughUnixSockets(t *testing.T) {
	defer forgetSessions(t)
	dir := t.TempDir()
	for name, between := range map[string]string{
		"unix": "unix/" + dir + "/b",
		"tcp":  "tcp/" + newHost() + ":7000",
	} {
		t.Run(name, func(t *testing.T) {
			first := filepath.Join(dir, "a")
			next := strings.TrimPrefix(between, "tcp/")
			mustLoad(t, object{
				"a": server(to([]string{next}), "unix/"+first),
				"b": server(to([]string{"unix/" + first}), between),
			})
			for range 20 {
				client, err := net.Dial("unix", first)
				if err != nil {
					t.Fatal(err)
				}
				if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
					t.Errorf("got %d bytes, %v, want the end", n, err)
				}
				client.Close()
				if got := accessLog.wait(t, func(e entry) bool { return e.Reason == "loop" }); got.Status != 508 {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}

// What a Provision has noted of unix sockets Cleanup takes back, also that of a config that is rejected.
func TestUnixSocketsAreForgotten(t *testing.T) {
	defer forgetSessions(t)
	listen := "unix/" + filepath.Join(t.TempDir(), "a")
	for range 3 {
		mustLoad(t, object{"a": server(to([]string{echo(t)}), listen)})
		if !hops.ListensUnix() {
			t.Error("no unix socket is listened on")
		}
	}
	rejected := object{"layer4": object{"servers": object{"a": server(to([]string{echo(t)}), listen), "b": server(to(nil), listen)}}}
	for range 3 {
		if err := load(rejected); err == nil {
			t.Error("a forward without upstreams is accepted")
		}
		if !hops.ListensUnix() {
			t.Error("no unix socket is listened on after a config was rejected")
		}
	}
	mustLoad(t, object{"a": server(to([]string{echo(t)}), "tcp/"+newHost()+":7000")})
	if hops.ListensUnix() {
		t.Error("unix sockets are listened on after all handlers have gone")
	}
}
