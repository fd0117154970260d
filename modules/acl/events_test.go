package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/events"
)

// Each edit of a dynamic list is an event, in the order of edits, and so is the end of an entry's time.
func TestEditsAreEvents(t *testing.T) {
	t.Parallel()
	d, err := openDynamic("of events", store(t))
	must(t, err)
	t.Cleanup(func() {
		must(t, d.Destruct())
		d.wait()
	})
	must(t, d.add(newTestEntry("192.0.2.0/24", time.Hour)))
	must(t, d.add(newTestEntry("192.0.2.7/32", 0)))
	if _, err := d.remove(netip.MustParsePrefix("192.0.2.7/32")); err != nil {
		t.Fatal(err)
	}
	if ok, _ := d.remove(netip.MustParsePrefix("192.0.2.7/32")); ok {
		t.Fatal("removed twice")
	}
	var entries []entry
	for i := range 30 {
		entries = append(entries, newTestEntry(fmt.Sprintf("198.51.100.%d/32", i), 300*time.Millisecond))
	}
	if _, err := d.replaceAll(entries); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all entries have expired", func() bool { return len(d.all()) == 0 })
	if _, err := d.replaceAll(nil); err != nil {
		t.Fatal(err)
	}
	// The fields of each, and how many entries have expired, in however many rounds.
	var got []string
	expired := 0
	some, _, _, _ := events.Since(0)
	for _, e := range some {
		switch {
		case e.Data["list"] != "of events":
		case e.Data["expired"] == true:
			expired += int(e.Data["entries"].(int64))
			if named, is := e.Data["prefixes"].([]any); is && len(named) > mostPrefixes {
				t.Errorf("%d prefixes in an event", len(named))
			}
			if e.Name != events.Unban {
				t.Errorf("%s", e.JSON)
			}
		default:
			ttl, _ := e.Data["ttl"].(float64)
			got = append(got, fmt.Sprint(e.Name, " ", e.Data["prefix"], " ", e.Data["entries"], " ", ttl > 3590 && ttl <= 3600, " ", e.Data["by"]))
		}
	}
	want := []string{"ban 192.0.2.0/24 1 true tester", "ban 192.0.2.7/32 1 false tester", "unban 192.0.2.7/32 1 false <nil>", "ban <nil> 30 false <nil>", "unban <nil> 0 false <nil>"}
	if !slices.Equal(got, want) || expired != 30 {
		t.Errorf("%d expired, and:\n%s\nwant:\n%s", expired, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
