package console

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// The answers are those that the API gives, so that names of fields are tested, too.
const (
	statusJSON = `{"version": "v1.2.3", "caddy_version": "v2.11.9", "go_version": "go1.26.0", "started": "2026-11-28T08:00:00Z", "uptime": 14400,
		"config": {"loaded": "2026-11-28T11:00:00Z", "reloads": {"success": 12, "failure": 1}, "last_error": "layer4: \"x\": expected y"},
		"sessions": {"tcp": 9000, "udp": 512, "replaced": 31},
		"rates": {"bytes_up": 1234567, "bytes_down": 98765432, "sessions": 120.4, "refusals": 3.5},
		"refusals": {"denied": 120345, "limited": 44, "no_upstream": 120345},
		"descriptors": {"used": 18310, "limit": 65536}, "event_loop_lag": 0.0004, "log_entries_dropped": 17,
		"degraded": [{"what": "acl list", "reason": "Get \"https://example.com\": timeout", "since": "2026-11-28T11:30:00Z", "fields": {"name": "feed", "failures": 3}}]}`
	upstreamsJSON = `[
		{"name": "10.0.0.11:5432", "handler": "gate+tcp/:5432 0/0", "state": "up", "weight": 2, "sessions": 6200, "queued": 3, "checked_at": "2026-11-28T11:59:58Z"},
		{"name": "10.0.0.12:5432", "handler": "gate+tcp/:5432 0/0", "state": "down", "weight": 1, "fails": 7, "last_error": "dial tcp 10.0.0.12:5432: connect: connection refused"},
		{"name": "10.0.0.13:5432", "handler": "gate+tcp/:5432 0/0", "state": "drain", "weight": 3, "configured_weight": 1, "priority": 1, "zone": "b", "sessions": 5, "set_at": "2026-11-28T11:00:00Z"},
		{"name": "udp/10.0.0.53:53", "handler": "gate+udp/:53 0/0", "state": "up", "weight": 1, "sessions": 512},
		{"name": "10.0.0.14:5432", "handler": "gate+tcp/:5432 0/0", "state": "slow_start", "weight": 1, "sessions": 12}]`
	listsJSON = `[{"name": "bans", "size": 1203}, {"name": "other", "size": 0, "damaged": "entry 3: it ends too early"},
		{"name": "file /etc/portgate/office.txt", "size": 12, "loaded": "2026-11-28T11:00:00Z", "lines": 14, "bad_lines": 1, "masked_lines": 1, "error": "open: no such file"}]`
	listJSON = `{"name": "bans", "size": 2, "entries": [{"prefix": "192.0.2.7/32", "added": "2026-11-28T11:00:00Z", "expires": "2026-11-28T13:00:00Z", "ttl": "59m59s", "by": "root", "reason": "port scan"},
		{"prefix": "2001:db8::/32", "added": "2026-11-28T11:00:00Z", "reason": "\u001b]0;x\u0007"}]}`
	limitsJSON   = `[{"name": "front", "limit": "connections 100/s per ip", "key": "192.0.2.7", "used": 1.004}, {"limit": "concurrent 50 per ip", "key": "2001:db8::7", "used": 0.5}]`
	mappingsJSON = `[{"listener": "0.0.0.0:5432", "network": "tcp", "handler": "forward", "upstreams": ["10.0.0.11:5432", "10.0.0.12:5432"], "sessions": 9000, "sessions_total": 1234567, "rate_up": 1234.5, "rate_down": 987654321},
		{"listener": "0.0.0.0:53", "network": "udp", "handler": "forward", "upstreams": ["udp/10.0.0.53:53"], "sessions": 512, "sessions_total": 513}]`
)

// sessionsJSON has n sessions of all kinds.
func sessionsJSON(n int) string {
	all := []string{
		`{"session_id": "c9b6233d00000001", "state": "forwarding", "network": "tcp", "listener": "0.0.0.0:5432", "client_ip": "192.0.2.7", "client_port": 51228, "upstream": "10.0.0.11:5432",
			"bytes_up": 123456, "bytes_down": 9876543210, "rate_up": 999, "rate_down": 12345678, "duration": 3725.4, "idle": 0.01, "rule": "allow 192.0.2.0/24"}`,
		`{"session_id": "c9b6233d00000002", "state": "forwarding", "network": "udp", "listener": "0.0.0.0:53", "client_ip": "2001:db8:1234:5678:9abc:def0:1234:5678", "client_port": 5353, "upstream": "udp/10.0.0.53:53",
			"bytes_up": 64, "bytes_down": 512, "datagrams_up": 1, "datagrams_down": 1, "rate_up": 0, "rate_down": 51, "duration": 9.94, "idle": 9.9}`,
		`{"session_id": "c9b6233d00000003", "state": "waiting", "network": "unix", "listener": "/run/portgate.sock", "upstream": "", "bytes_up": 0, "bytes_down": 0, "duration": 61, "idle": 61}`,
		`{"session_id": "c9b6233d00000004", "state": "forwarding", "network": "tcp", "listener": "0.0.0.0:5432", "client_ip": "192.0.2.8", "client_port": 1, "upstream": "evil\u001b[2J\u001b]0;title\u0007\u202e日本.example:5432",
			"bytes_up": 1, "bytes_down": 2, "rate_up": 1000, "rate_down": 1000000, "duration": 100000, "idle": 86400, "rule": "allow \u009b31m", "replaced": true}`,
	}
	text := "["
	for i := range n {
		if i > 0 {
			text += ","
		}
		if i < len(all) {
			text += all[i]
			continue
		}
		text += fmt.Sprintf(`{"session_id": "c9b6233d%08x", "state": "forwarding", "network": "tcp", "listener": "0.0.0.0:5432", "client_ip": "198.51.100.%d", "client_port": %d, "upstream": "10.0.0.11:5432",
			"bytes_up": %d, "bytes_down": %d, "rate_up": %d, "rate_down": %d, "duration": %d, "idle": 0}`, i+1, i%250, 1024+i, i*1000, i*100000, 900-i, 9000-i, i*i)
	}
	return text + "]"
}

func decode[T any](t testing.TB, text string) *T {
	t.Helper()
	v := new(T)
	must(t, json.Unmarshal([]byte(text), v))
	return v
}

// example returns a model that shows n sessions.
func example(t testing.TB, n int) *model {
	t.Helper()
	s := &snapshot{at: noon, status: decode[status](t, statusJSON), upstreams: *decode[upstreams](t, upstreamsJSON), sessions: *decode[sessions](t, sessionsJSON(n))}
	s.upstreams.sort()
	m := &model{address: "localhost:2019", limit: sessionsShown}
	m.came(s, nil)
	return m
}
