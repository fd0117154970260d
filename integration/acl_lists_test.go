package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// What can't be a list is refused when the config is loaded, in little time; what can is taken.
func TestACLFilesAtFirstLoad(t *testing.T) {
	t.Parallel()
	p, addr := startACL(t, acl("deny 127.0.0.9"))
	bad := map[string]string{
		"binary":         strings.Repeat("\x00\x01\xff\n", 10000),
		"100 MB":         strings.Repeat("192.0.2.1                      \n", 100<<20/32),
		"line of 1 MB":   strings.Repeat("1", 1<<20) + "\n",
		"only /33":       "10.0.0.0/33\n",
		"mostly nothing": "<html>\n<body>\n127.0.0.2\n",
	}
	for name, content := range bad {
		path := writeFile(t, "list", content)
		start := time.Now()
		err := p.TryLoad(gate.Layer4(gate.Listen(addr, acl("deny file "+path), gate.Forward(serve(t, echo)))))
		if err == nil || !strings.Contains(err.Error(), "deny file "+path) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	mustLetIn(t, addr, true, "127.0.0.2") // the config before is still in force
	for name, content := range map[string]string{
		"CRLF":             "127.0.0.2\r\n127.0.0.3\r\n",
		"byte order mark":  "\xef\xbb\xbf127.0.0.2",
		"a bad line":       "127.0.0.2\n10.0.0.0/33\n127.0.0.3\n",
		"a line of 1 MB":   "127.0.0.2\n127.0.0.3\n#" + strings.Repeat("x", 1<<20),
		"a million others": "127.0.0.2\n" + strings.Repeat("192.0.2.1\n", 1e6),
	} {
		path := writeFile(t, "list", content)
		p.Load(gate.Layer4(gate.Listen(addr, acl("deny file "+path), gate.Forward(serve(t, echo)))))
		if got, err := letIn("127.0.0.2", addr); got || err != nil {
			t.Errorf("%s: let in: %t (%v)", name, got, err)
		}
		mustLetIn(t, addr, true, "127.0.0.4")
	}
	empty := writeFile(t, "list", "")
	p.Load(gate.Layer4(gate.Listen(addr, acl("deny file "+empty), gate.Forward(serve(t, echo)))))
	mustLetIn(t, addr, true, "127.0.0.2")
}

// A thousand versions of a list while clients come: nobody is let in who is in all of them, nobody refused who is in none.
func TestACLFileRewrittenUnderLoad(t *testing.T) {
	const rewrites = 1000
	path := writeFile(t, "list", "127.0.0.2\n")
	_, addr := startACL(t, acl("deny file "+path), gate.WithoutRace())
	var stop atomic.Bool
	var load sync.WaitGroup
	var tried [2]atomic.Int64
	for client, want := range []bool{false, true} {
		load.Go(func() {
			from := fmt.Sprintf("127.0.0.%d", client+2)
			for !stop.Load() {
				got, err := letIn(from, addr)
				if err != nil || got != want {
					t.Errorf("%s is let in: %t (%v), want %t", from, got, err, want)
					return
				}
				tried[client].Add(1)
			}
		})
	}
	for n := range rewrites {
		own := fmt.Sprintf("127.0.%d.%d", 1+n/250, 1+n%250)
		must(t, rewrite(path, strings.Repeat("198.51.100.7\n", n%97)+own+"\n127.0.0.2\n", n))
		if n%20 > 0 && n < rewrites-1 {
			continue // most of them follow each other faster than they can be loaded
		}
		gate.Eventually(t, peerTimeout, func() error {
			if got, err := letIn(own, addr); got || err != nil {
				return fmt.Errorf("version %d is not in force (%v)", n, err)
			}
			return nil
		})
	}
	stop.Store(true)
	load.Wait()
	t.Logf("%d denied and %d allowed connections during %d rewrites", tried[0].Load(), tried[1].Load(), rewrites)
}

// rewrite gives a file a new content, in another way each time.
func rewrite(path, content string, n int) error {
	switch n % 3 {
	case 0: // as a shell's > does
		return os.WriteFile(path, []byte(content), 0o644)
	case 1: // in two steps, with a part of a line at the end of the first
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		half := len(content) / 2
		_, err = io.WriteString(file, content[:half])
		_, err2 := io.WriteString(file, content[half:])
		return errors.Join(err, err2, file.Close())
	default:
		if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}
}

// Reloads of configs with lists are quick and leave nothing behind, while clients come and lists change.
func TestACLReloads(t *testing.T) {
	const reloads = 50
	path := writeFile(t, "list", "127.0.0.2\n")
	addr := gate.ReserveAddr(t)
	handler := acl("deny file "+path, "deny list bans", "deny url "+servePage(t, "127.0.0.3\n"), "deny country DE").
		With("country_database", networksDatabase(t))
	config := gate.Layer4(gate.Listen(addr, handler, gate.Forward(serve(t, echo))))
	p := gate.Start(t, config)
	must(t, oneRequest(addr))
	p.Load(config)
	before := p.Baseline()

	var stop atomic.Bool
	var load sync.WaitGroup
	for client, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "127.0.0.3": false, "127.0.0.4": false} {
		load.Go(func() {
			for !stop.Load() {
				if got, err := letIn(client, addr); err != nil || got != want {
					t.Errorf("%s is let in: %t (%v), want %t", client, got, err, want)
					return
				}
			}
		})
	}
	for n := range reloads {
		must(t, rewrite(path, fmt.Sprintf("127.0.0.2\n10.0.0.%d\n", n), n))
		start := time.Now()
		p.Load(config)
		if took := time.Since(start); took > time.Second+tolerance {
			t.Errorf("reload %d took %v, want at most %v", n, took, time.Second+tolerance)
		}
	}
	stop.Store(true)
	load.Wait()
	before.MustReturn(t, peerTimeout)
}

// A list of a million lines takes the place of another one, again and again: no connection waits for it.
func TestACLSwapOfALongListStallsNobody(t *testing.T) {
	const swaps = 10
	path := writeFile(t, "list", "")
	p, addr := startACL(t, acl("deny file "+path), gate.WithoutRace())
	lists := make([]string, 2)
	for i := range lists {
		var text strings.Builder
		for n := range 1_000_000 {
			fmt.Fprintf(&text, "%d.%d.%d.%d\n", 11+i+n>>19, n>>11&255, n>>3&255, n&7<<5)
		}
		lists[i] = writeFile(t, "long", text.String()+fmt.Sprintf("127.0.0.%d\n", 2+i))
	}
	var stop atomic.Bool
	var load sync.WaitGroup
	var took, without []time.Duration // without the gateway: on a busy machine these wait, too
	ask := func(addr string, took *[]time.Duration) {
		load.Go(func() {
			for !stop.Load() {
				start := time.Now()
				if err := oneRequest(addr); err != nil {
					t.Error(err)
					return
				}
				*took = append(*took, time.Since(start))
			}
		})
	}
	ask(addr, &took)
	ask(serve(t, echo), &without)
	for n := range swaps {
		must(t, os.Rename(lists[n%2], path))
		gate.Eventually(t, peerTimeout, func() error {
			if got, err := letIn(fmt.Sprintf("127.0.0.%d", 2+n%2), addr); got || err != nil {
				return fmt.Errorf("list %d is not in force (%v)", n, err)
			}
			return nil
		})
		text, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(lists[n%2], text, 0o644))
	}
	stop.Store(true)
	load.Wait()
	slices.Sort(took)
	t.Logf("%d connections during %d swaps: median %v, 99.9th percentile %v, most %v; without the gateway most %v", len(took), swaps,
		percentile(took, 50), took[len(took)*999/1000], took[len(took)-1], slices.Max(without))
	if most, alone := took[len(took)-1], slices.Max(without); most > 500*time.Millisecond+2*alone {
		t.Errorf("a connection took %v, and %v at most without the gateway", most, alone)
	}
	if resident := p.ResidentKiB(); resident > 400<<10 {
		t.Errorf("the process has grown to %d MiB", resident>>10)
	}
}
