package acl

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// A prefix with bits set behind its length keeps its network out where a list says whom to deny, and lets nobody in where it
// says whom to allow. That is so for files and for URLs, and can be seen.
func TestHostBitsInLists(t *testing.T) {
	t.Parallel()
	const text = "203.0.113.1\n198.51.100.9/30\n"
	path := tempFile(t, text)
	p := publish(t, textAnswer(text))
	for _, source := range []string{`"file","` + path + `"`, `"url","` + p.URL + `"`} {
		denying, _ := handler(t, `{"rules":[{"deny":[`+source+`]}]}`)
		for client, want := range map[string]string{"198.51.100.8": deny, "198.51.100.9": deny, "198.51.100.11": deny, "198.51.100.12": allow, "203.0.113.1": deny} {
			if got := denying.rules.judge(addr(client)).action(); got != want {
				t.Errorf("deny %s: %s: %s, want %s", source, client, got, want)
			}
		}
		allowing, _ := handler(t, `{"rules":[{"allow":[`+source+`]}]}`)
		for client, want := range map[string]string{"198.51.100.8": deny, "198.51.100.9": deny, "198.51.100.11": deny, "203.0.113.1": allow} {
			if got := allowing.rules.judge(addr(client)).action(); got != want {
				t.Errorf("allow %s: %s: %s, want %s", source, client, got, want)
			}
		}
	}
}

// What of a list is not taken as it is written can be seen in the log, the metrics and the API.
func TestConditionOfLists(t *testing.T) {
	t.Parallel()
	path := tempFile(t, "203.0.113.1\n198.51.100.9/30\n\x1b[31mx\n192.0.2.9/24\n")
	f, err := openFile("file condition", path, listFormat(ipset.MaskHostBits))
	must(t, err)
	t.Cleanup(func() { must(t, f.Destruct()) })
	if n := testutil.ToFloat64(collectors.maskedLines.WithLabelValues(f.name)); n != 2 {
		t.Errorf("%v lines taken as their networks, want 2", n)
	}
	find := func() (found summary) {
		_, body := call(t, "GET", listsPath, "")
		var all []summary
		must(t, json.Unmarshal([]byte(body), &all))
		for _, one := range all {
			if one.Name == f.name {
				return one
			}
		}
		t.Fatalf("not in %s", body)
		return found
	}
	got := find()
	if got.Size != 3 || got.Lines != 4 || got.BadLines != 1 || got.MaskedLines != 2 || got.Loaded == nil || got.Error != "" ||
		!strings.HasPrefix(got.FirstBad, `line 3: "\x1b[31mx": expected`) || !strings.HasPrefix(got.FirstMasked, `line 2: "198.51.100.9/30": `) {
		t.Errorf("%+v %+v", got, got.condition)
	}
	var table bytes.Buffer
	body, err := json.Marshal([]summary{got, {Name: "bans", Size: 7}})
	must(t, err)
	must(t, printLists(&table, body))
	if !strings.Contains(table.String(), "1 of 4 lines left out, 2 lines taken as their networks\n") {
		t.Error(table.String())
	}
	must(t, os.Remove(path))
	eventually(t, "the error", func() bool { return strings.Contains(find().Error, "no such file") })
}
