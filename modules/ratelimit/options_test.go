package ratelimit

import (
	"encoding/json"
	"strings"
	"testing"

	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// FuzzUnmarshal reads any options. What is accepted becomes JSON that is accepted too and means the same, and what is
// refused is refused with its place.
func FuzzUnmarshal(f *testing.F) {
	for _, options := range []string{
		"connections 100/s burst 200 per ip", "datagrams 1/m per connection", "concurrent 5 per {x}",
		"bandwidth both 1.5MiB/s burst 64KiB per all", "connections 1/s\n algorithm leaky_bucket\n max_delay 5s",
		"connections 1/s\n store redis redis://u:p@h:1/2 {\n timeout 1s\n on_error deny\n }", "connections 1/s\n on_limit respond text\n dry_run",
	} {
		f.Add(options)
	}
	f.Fuzz(func(t *testing.T, options string) {
		tokens, err := caddycaddyfile.Tokenize([]byte("rate_limit {\n"+options+"\n}"), "Testfile")
		if err != nil {
			t.Skip()
		}
		var h Handler
		if err := h.UnmarshalCaddyfile(caddycaddyfile.NewDispenser(tokens)); err != nil {
			if !strings.Contains(err.Error(), ", at Testfile:") {
				t.Errorf("no file and line: %v", err)
			}
			return
		}
		encoded, err := json.Marshal(&h)
		if err != nil {
			t.Fatal(err)
		}
		var again Handler
		if err := json.Unmarshal(encoded, &again); err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		if err := again.check(); err != nil {
			t.Errorf("%s: %v", encoded, err)
		}
		if twice, _ := json.Marshal(&again); string(twice) != string(encoded) {
			t.Errorf("%s became %s", encoded, twice)
		}
		// It can be compiled, or says why not.
		ids := make(map[string]uint16)
		again.ipv6Prefix = defaultIPv6Prefix
		_, _ = again.compile(func(signature string) uint16 {
			if _, known := ids[signature]; !known {
				ids[signature] = uint16(len(ids))
			}
			return ids[signature]
		})
	})
}
