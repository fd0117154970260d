package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// `caddy validate` refuses what could not start, or would listen elsewhere than was meant.
func TestValidateLooksAtListenAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ servers, want string }{
		{"gate+upd/:5353 { %s }", `listen address "gate+upd/:5353" of server "srv0": unknown network "gate+upd": expected gate+udp`},
		{"gate+tcp/127.0.0.1 { %s }", `listen address "gate+tcp/127.0.0.1" of server "srv0": expected a port, as in gate+tcp/127.0.0.1:8080`},
		{"gate+tcp/:7000 gate+tcp/127.0.0.1:7000 { %s }", `listen address "gate+tcp/127.0.0.1:7000" of server "srv0": expected each address once, but listen address "gate+tcp/:7000" of server "srv0" is the same or overlaps`},
		{"gate+tcp/:7000 { %s }\n gate+tcp/0.0.0.0:7000 { %[1]s }", `listen address "gate+tcp/0.0.0.0:7000" of server "srv1": expected each address once, but listen address "gate+tcp/:7000" of server "srv0" is the same or overlaps`},
		{"unix/run/gate.sock { %s }", `listen address "unix/run/gate.sock" of server "srv0": expected a path from the root, with two slashes: unix//run/gate.sock`},
		{"gate+tcp4/:7000 { %s }\n gate+tcp6/:7000 { %[1]s }", ""},
		{"fd/3 { %s }", ""},
		{"gate+fd/3 { %s }\n fdgram/4 { route { acl { deny 192.0.2.1 } } }", ""},
	} {
		path := filepath.Join(t.TempDir(), "Caddyfile")
		servers := strings.ReplaceAll(fmt.Sprintf(c.servers, "route {\n forward 127.0.0.1:9\n }"), "{ ", "{\n")
		servers = strings.ReplaceAll(servers, " }", "\n}")
		must(t, os.WriteFile(path, []byte("{\nlayer4 {\n"+servers+"\n}\n}\n"), 0o600))
		_, said, code := gate.Run(t, gate.Plain, "validate", "--config", path, "--adapter", "caddyfile")
		if c.want == "" && code != 0 || c.want != "" && (code == 0 || !strings.Contains(said, c.want)) {
			t.Errorf("%s: exit code %d\ngot  %s\nwant %s", servers, code, said, c.want)
		}
	}
}
