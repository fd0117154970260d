package acl

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/refusal"
)

// A file that can't be read any more, and lines that are left out, are said as long as that lasts.
func TestFileThatIsDegraded(t *testing.T) {
	t.Parallel()
	path := tempFile(t, one)
	f, err := openFile("file degraded", path, listFormat(ipset.MaskHostBits))
	must(t, err)
	if f.loading.Is() || f.lines.Is() {
		t.Error("degraded from the beginning")
	}
	must(t, os.Remove(path))
	eventually(t, "the failure", f.loading.Is)
	write(t, path, one+"\n"+two+"\nx\n")
	eventually(t, "the end of the failure, with a bad line", func() bool { return !f.loading.Is() && f.lines.Is() })
	if n := testutil.ToFloat64(collectors.badLines.WithLabelValues(f.name)); n != 1 {
		t.Errorf("%v bad lines, want 1", n)
	}
	write(t, path, one+"\n"+two+"\n")
	eventually(t, "the end of the bad lines", func() bool { return !f.lines.Is() })
	must(t, os.Remove(path))
	eventually(t, "another failure", f.loading.Is)
	must(t, f.Destruct())
	if f.loading.Is() {
		t.Error("degraded after its end")
	}
}

// So are a server that fails, and a copy that can't be stored.
func TestFeedThatIsDegraded(t *testing.T) {
	t.Parallel()
	p := publish(t, textAnswer(one))
	m := newMemory()
	f := follow(t, p.URL, often, m)
	if f.loading.Is() || f.uncopied.Is() {
		t.Error("degraded from the beginning")
	}
	p.change(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	eventually(t, "the failure", f.loading.Is)
	m.breakDown(true)
	p.change(t, textAnswer(two))
	eventually(t, "the end of the failure, without a copy", func() bool { return !f.loading.Is() && f.uncopied.Is() })
	m.breakDown(false)
	p.change(t, textAnswer(one))
	eventually(t, "the copy", func() bool { return !f.uncopied.Is() })
}

// A handler that resets where it should drop says so until it goes.
func TestDropThatIsDegraded(t *testing.T) {
	t.Parallel()
	h, unload := handler(t, `{"default":"deny","on_deny":["drop"]}`)
	if refusal.CanDrop() {
		if h.undropped != nil {
			t.Error("degraded though it can drop")
		}
		return
	}
	if !h.undropped.Is() {
		t.Error("not degraded though it can't drop")
	}
	unload()
	if h.undropped.Is() {
		t.Error("degraded after its end")
	}
}

// Entries that expire one after the other go without a look at the others, and an entry of which the time has changed goes at
// the new one.
func TestManyEntriesExpire(t *testing.T) {
	t.Parallel()
	d := openList(t, newMemory())
	const size = 3 * expiryRound
	now := time.Now()
	entries := make([]entry, size)
	for n := range entries {
		entries[n] = numbered(n)
		expires := now.Add(time.Duration(n%50) * 10 * time.Millisecond)
		if n%3 == 0 {
			expires = now.Add(time.Hour)
		}
		entries[n].Expires = &expires
	}
	_, err := d.replaceAll(entries)
	must(t, err)
	eventually(t, "they expire", func() bool { return d.set.Load().Len() == size/3 })
	for n := range size {
		if want := n%3 == 0; d.contains(numbered(n).Prefix.Addr()) != want {
			t.Fatalf("entry %d is there: %t", n, !want)
		}
	}
}
