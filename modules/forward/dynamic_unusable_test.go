package forward

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// Upstreams that options of the handler don't go with are left out, and the others are used.
func TestDynamicUnusable(t *testing.T) {
	t.Parallel()
	good := refuses()
	for options, bad := range map[string]string{
		`, "tls": {}`:               "unix//run/db.sock",
		`, "source": ["127.0.0.1"]`: "[2001:db8::1]:9",
		`, "health_check": {"type": "udp", "payload": "00"}`: "unix//run/db.sock",
	} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			source, config := dynamicTo(t, options)
			source.says(lists(t, bad, good+" zone=east"))
			h, _, _ := provision(t, config)
			eventually(t, func() error {
				pool := h.rosters.now.Load().pool
				if pool.Len() != 1 {
					return fmt.Errorf("%d upstreams", pool.Len())
				}
				if u := pool.At(0); u.Name != good || u.Zone != "east" {
					return fmt.Errorf("%q in the zone %q", u.Name, u.Zone)
				}
				return nil
			})
		})
	}
}

// Files of TLS are read when a config is loaded, also where no upstream is known yet. What becomes of them later keeps no discovered one away.
func TestDynamicWithFilesOfTLS(t *testing.T) {
	t.Parallel()
	ca, upstream := newAuthority(t), refuses()
	source, config := dynamicTo(t, fmt.Sprintf(`, "tls": {"ca": [%q]}`, ca.file))
	whole, err := os.ReadFile(ca.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, ca.file, nil)
	if _, _, _, err := tryProvision(t, config); err == nil || !strings.Contains(err.Error(), "expected certificates in PEM form") {
		t.Errorf("the config is taken: %v", err)
	}
	write(t, ca.file, whole)
	h, _, _ := provision(t, config)
	write(t, ca.file, nil)
	source.says(lists(t, upstream))
	eventually(t, func() error {
		if now := h.rosters.now.Load(); !now.pool.Has(upstream) {
			return fmt.Errorf("%d upstreams", now.pool.Len())
		}
		return nil
	})
}

// A source after its grace period is used, too, where another one has nothing that may get sessions.
func TestDynamicExpiresBesideUnusable(t *testing.T) {
	t.Parallel()
	a := refuses()
	gone, other := stageOf(t.Name()+"/gone"), stageOf(t.Name()+"/other")
	gone.says(lists(t, a))
	other.says(lists(t, "unix//run/db.sock"))
	h, _, _ := provision(t, fmt.Sprintf(
		`{"dynamic": [{"source": "test_spoken", "name": %q, "grace": "1ms"}, {"source": "test_spoken", "name": %q}], "tls": {}}`,
		t.Name()+"/gone", t.Name()+"/other"))
	eventually(t, func() error {
		if !h.rosters.now.Load().pool.Has(a) {
			return errors.New("it is not known yet")
		}
		return nil
	})
	gone.says(errAway)
	eventually(t, func() error {
		if !h.dynamic.sources[0].state().Expired {
			return errors.New("it has not expired")
		}
		return nil
	})
	h.dynamic.update()
	if !h.rosters.now.Load().pool.Has(a) {
		t.Error("no upstream is left")
	}
}
