package admin

import (
	"encoding/json"
	"slices"
	"testing"
)

// Sessions of one address are one client, whatever form the address has, and the order is what is asked for.
func TestClients(t *testing.T) {
	t.Parallel()
	listener := newListener()
	// The first has moved most, the second has most sessions.
	scope, _ := newScope(t)
	for client, sessions := range map[string][]int64{"203.0.113.201:1": {9_000_000_000}, "203.0.113.202:1": {100, 100, 100}, "[::ffff:203.0.113.201]:2": {5}} {
		for _, n := range sessions {
			begin(t, scope, "tcp", listener, client, "192.0.2.1:80", 0).move(n, n)
		}
	}
	for sort, want := range map[string][]string{
		"":                           {"203.0.113.201", "203.0.113.202"},
		"?sort=rate":                 {"203.0.113.201", "203.0.113.202"},
		"?sort=bytes":                {"203.0.113.201", "203.0.113.202"},
		"?limit=10000&sort=sessions": {"203.0.113.202", "203.0.113.201"},
	} {
		status, answer := call(t, "GET", clientsPath+sort)
		var all []client
		if err := json.Unmarshal([]byte(answer), &all); err != nil || status != 200 {
			t.Fatalf("%s: %d %s", sort, status, answer)
		}
		var found []string
		for _, c := range all {
			if slices.Contains(want, c.IP) {
				found = append(found, c.IP)
			}
			if c.IP == "203.0.113.201" && (c.Sessions != 2 || c.BytesUp != 9_000_000_005 || c.BytesDown != 9_000_000_005 || c.RateUp < 1e6) {
				t.Errorf("%s: %+v", sort, c)
			}
		}
		if !slices.Equal(found, want) {
			t.Errorf("%s: %v, want %v", sort, found, want)
		}
	}
	if status, answer := call(t, "GET", clientsPath+"?limit=1&sort=bytes"); status != 200 || !json.Valid([]byte(answer)) {
		t.Errorf("%d %s", status, answer)
	}
	for path, want := range map[string]string{
		"?sort=idle": `sort: "idle": expected rate, bytes or sessions`,
		"?limit=0":   `limit: "0": expected a whole number from 1 to 10000`,
		"?client=1":  `unknown parameter "client": expected one of sort, limit`,
	} {
		if status, answer := call(t, "GET", clientsPath+path); status != 400 || answer != want {
			t.Errorf("%s: %d %s, want 400 %s", path, status, answer, want)
		}
	}
	if status, answer := call(t, "DELETE", clientsPath); status != 405 || answer != "method DELETE: expected GET" {
		t.Errorf("%d %s", status, answer)
	}
}
