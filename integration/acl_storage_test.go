package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Entries are added one by one to a long list, each in little time, and all are there after a kill. 50,000 take a minute at
// most; here it is a part of them, at the end of a list of nearly 100,000, and what they may take is what a busy machine needs. Writing
// the list whole each time would take a quarter of an hour.
func TestACLManyEntriesOneByOne(t *testing.T) {
	const before, added, limit = 97_000, 2_000, time.Minute
	storage := gate.JSON{"module": "file_system", "root": t.TempDir()}
	config := gate.Layer4(gate.Listen(gate.ReserveAddr(t), acl("deny list bans"))).With("storage", storage)
	p := gate.Start(t, config, gate.WithoutRace())

	var entries strings.Builder
	for n := range before {
		fmt.Fprintf(&entries, `,{"prefix":"10.%d.%d.%d","reason":"port scan","ttl":"24h"}`, n>>16, n>>8&255, n&255)
	}
	status, answer, err := p.Do(http.MethodPut, "/portgate/lists/bans", `{"entries":[`+entries.String()[1:]+`]}`)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d %.200s (%v)", status, answer, err)
	}
	client := http.Client{Timeout: limit, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(p.Admin(), "unix/"))
	}}}
	defer client.CloseIdleConnections()
	start := time.Now()
	for n := range added {
		url := fmt.Sprintf("http://127.0.0.1/portgate/lists/bans/entries/192.168.%d.%d", n>>8, n&255)
		request, err := http.NewRequest(http.MethodPut, url, strings.NewReader(`{"ttl":"1h","reason":"port scan","by":"test"}`))
		must(t, err)
		response, err := client.Do(request)
		must(t, err)
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", url, response.Status)
		}
	}
	took := time.Since(start)
	t.Logf("%d entries in %v, %v each", added, took, took/added)
	if took > limit {
		t.Errorf("%d entries took %v, want at most %v", added, took, limit)
	}
	must(t, syscall.Kill(p.PID(), syscall.SIGKILL))
	p.Wait(peerTimeout)

	p = gate.Start(t, config, gate.WithoutRace())
	if lists := p.MustGet("/portgate/lists"); !strings.Contains(lists, fmt.Sprintf(`"size":%d`, before+added)) {
		t.Errorf("after a kill: %s", lists)
	}
}

// What is answered with "in force, but not stored" is stored when the disk allows it, without another request. It is said once,
// and once that it is over.
func TestACLStorageThatFailsForAWhile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	folder := filepath.Join(root, "portgate", "lists", "bans")
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, acl("deny list bans"), gate.Forward(serve(t, echo)))).
		With("storage", gate.JSON{"module": "file_system", "root": root})
	p := gate.Start(t, config, gate.WithoutRace())
	must(t, os.MkdirAll(filepath.Dir(folder), 0o700))
	must(t, os.WriteFile(folder, nil, 0o600)) // no folder can be made there now
	for _, client := range []string{"127.0.0.2", "127.0.0.3"} {
		status, answer, err := p.Do(http.MethodPut, "/portgate/lists/bans/entries/"+client, "")
		if err != nil || status != http.StatusInternalServerError || !strings.Contains(answer, "it is in force, but could not be stored") {
			t.Errorf("%d %s (%v)", status, answer, err)
		}
		mustLetIn(t, addr, false, client)
	}
	must(t, equal(p.Metrics(), "caddy_portgate_degraded", 1, label("what", "list_store")))
	must(t, os.Remove(folder))
	gate.Eventually(t, peerTimeout, func() error {
		return equal(p.Metrics(), "caddy_portgate_degraded", 0, label("what", "list_store"))
	})
	for _, said := range []string{"list can't be stored", "list is stored again"} {
		if n := strings.Count(p.Output(), said); n != 1 {
			t.Errorf("%q is said %d times, want 1", said, n)
		}
	}
	must(t, syscall.Kill(p.PID(), syscall.SIGKILL))
	p.Wait(peerTimeout)
	gate.Start(t, config, gate.WithoutRace())
	mustLetIn(t, addr, false, "127.0.0.2")
	mustLetIn(t, addr, false, "127.0.0.3")
}
