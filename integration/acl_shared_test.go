package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Two processes with one storage have the same list: a ban of one is in force in the other within the time that the documentation says, and
// what either has acknowledged is there after both were killed.
func TestACLTwoProcessesWithOneStorage(t *testing.T) {
	t.Parallel()
	const promised = 10 * time.Second
	upstream := gate.Forward(serve(t, echo))
	storage := gate.JSON{"module": "file_system", "root": t.TempDir()}
	var addrs [2]string
	var configs [2]gate.JSON
	var both [2]*gate.Process
	for i := range both {
		addrs[i] = gate.ReserveAddr(t)
		configs[i] = gate.Layer4(gate.Listen(addrs[i], acl("deny list bans"), upstream)).With("storage", storage)
		both[i] = gate.Start(t, configs[i], gate.WithoutRace())
	}
	ban(t, both[0], "bans", "127.0.0.2", "")
	start := time.Now()
	mustLetIn(t, addrs[0], false, "127.0.0.2")
	gate.Eventually(t, peerTimeout, func() error {
		if got, err := letIn("127.0.0.2", addrs[1]); got || err != nil {
			return fmt.Errorf("the other process lets the client in: %t (%v)", got, err)
		}
		return nil
	})
	if took := time.Since(start); took > promised+tolerance {
		t.Errorf("the ban is in force in the other process after %v, want at most %v", took, promised)
	}

	const bans = 200 // of each
	var banning sync.WaitGroup
	for i, p := range both {
		banning.Go(func() {
			for n := range bans {
				status, answer, err := p.Do(http.MethodPut, fmt.Sprintf("/portgate/lists/bans/entries/10.%d.0.%d", i, n), `{"ttl":"1h"}`)
				if err != nil || status != http.StatusOK {
					t.Errorf("%d %s (%v)", status, answer, err)
				}
			}
		})
	}
	banning.Wait()
	for i, p := range both {
		must(t, syscall.Kill(p.PID(), syscall.SIGKILL))
		p.Wait(peerTimeout)
		both[i] = gate.Start(t, configs[i], gate.WithoutRace())
	}
	for _, p := range both {
		if lists, want := p.MustGet("/portgate/lists"), fmt.Sprintf(`"size":%d`, 2*bans+1); !strings.Contains(lists, want) {
			t.Errorf("after a kill: %s, want %s", lists, want)
		}
	}
}

// A stored list that is empty or cut, as a power cut may leave it, does not keep the ports closed. What can be read of it is in force, what can't
// is kept, and it is said until the list is edited.
func TestACLDamagedListAtStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stored string
		denied bool // 127.0.0.2
	}{
		"empty": {"", false},
		"cut":   {"{\"through\":0}\n" + `[{"prefix":"127.0.0.2/32","added":"2026-01-02T03:04:05Z"},{"prefix":"127.0.0`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			file := filepath.Join(root, "portgate", "lists", "bans.json")
			must(t, os.MkdirAll(filepath.Dir(file), 0o700))
			must(t, os.WriteFile(file, []byte(c.stored), 0o600))
			addr := gate.ReserveAddr(t)
			config := func(handler gate.JSON) gate.JSON {
				return gate.Layer4(gate.Listen(addr, handler, gate.Forward(serve(t, echo)))).With("storage", gate.JSON{"module": "file_system", "root": root})
			}
			path := writeFile(t, "config.json", encode(t, config(acl("deny list bans").With("on_damaged", "refuse")).With("admin", gate.JSON{"disabled": true})))
			if _, output, code := gate.Run(t, gate.Plain, "run", "--config", path); code == 0 || !strings.Contains(output, "because of on_damaged refuse") {
				t.Errorf("on_damaged refuse: exit code %d\n%s", code, output)
			}
			p := gate.Start(t, config(acl("deny list bans")), gate.WithoutRace())
			mustLetIn(t, addr, !c.denied, "127.0.0.2")
			mustLetIn(t, addr, true, "127.0.0.3")
			for _, path := range []string{"/portgate/lists", "/portgate/lists/bans"} {
				if got := p.MustGet(path); !strings.Contains(got, `"damaged":"portgate/lists/bans.json in the storage is damaged`) {
					t.Errorf("%s: %s", path, got)
				}
			}
			must(t, equal(p.Metrics(), "caddy_portgate_acl_list_damaged", 1, label("list", "list bans")))
			must(t, equal(p.Metrics(), "caddy_portgate_degraded", 1, label("what", "list_damaged")))
			if output := p.Output(); !strings.Contains(output, `"level":"error"`) || !strings.Contains(output, "a stored list is damaged") {
				t.Errorf("the log does not say it: %s", output)
			}
			copies, err := filepath.Glob(filepath.Join(root, "portgate", "damaged", "bans-*"))
			must(t, err)
			if len(copies) != 1 {
				t.Fatalf("%d copies, want 1", len(copies))
			}
			if kept, err := os.ReadFile(copies[0]); err != nil || string(kept) != c.stored {
				t.Errorf("the copy has %q (%v)", kept, err)
			}
			ban(t, p, "bans", "127.0.0.3", "")
			must(t, syscall.Kill(p.PID(), syscall.SIGKILL))
			p.Wait(peerTimeout)
			p = gate.Start(t, config(acl("deny list bans").With("on_damaged", "refuse")), gate.WithoutRace())
			mustLetIn(t, addr, !c.denied, "127.0.0.2")
			mustLetIn(t, addr, false, "127.0.0.3")
			must(t, equal(p.Metrics(), "caddy_portgate_acl_list_damaged", 0, label("list", "list bans")))
		})
	}
}

func encode(t testing.TB, config gate.JSON) string {
	t.Helper()
	text, err := json.Marshal(config)
	must(t, err)
	return string(text)
}

// What was acknowledged survives a power cut: the file of an edit and, where it is new, the folders that have it were synced before
// the answer.
func TestACLEditsAreSynced(t *testing.T) {
	t.Parallel()
	config := gate.Layer4(gate.Listen(gate.ReserveAddr(t), acl("deny list bans"))).With("storage", gate.JSON{"module": "file_system", "root": t.TempDir()})
	p := gate.Start(t, config, gate.WithoutRace())
	for _, c := range []struct {
		edit string
		want int // syncs, at least
	}{
		{"127.0.0.2", 1 + 4}, // the first one makes a file, and three folders in one that is there
		{"127.0.0.3", 1},
	} {
		calls := p.Trace(func() { ban(t, p, "bans", c.edit, "") })
		if n := calls.Count()["fsync"]; n < c.want {
			t.Errorf("%s: %d syncs, want %d: %v", c.edit, n, c.want, calls.Count())
		}
		renamed := -1
		for i, call := range calls {
			if strings.HasPrefix(call.Name, "rename") {
				renamed = i
			}
		}
		if after := calls[renamed+1:].Count()["fsync"]; after == 0 {
			t.Errorf("%s: the folder is not synced after the file has got its name: %v", c.edit, calls)
		}
	}
}
