package placement

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/mholt/caddy-l4/layer4"
)

// find returns the finding of the handler with id 7 in routes of servers.
func find(t *testing.T, servers string) *Finding {
	t.Helper()
	var app layer4.App
	if err := json.Unmarshal([]byte(`{"servers":`+servers+`}`), &app); err != nil {
		t.Fatal(err)
	}
	l := newLayout()
	l.noteServers(&app, nil)
	f := l.found[identity{"test_step", `{"id":7}`}]
	if f == nil {
		t.Fatal("the handler is not found")
	}
	return f
}

// What stands on one listener is what is left of all places.
func TestPlacesAtAListener(t *testing.T) {
	t.Parallel()
	const handle = `{"handler":"test_step","id":7}`
	f := find(t, `{
		"a":{"listen":["gate+tcp/:10-20","tcp/127.0.0.1:15"],"routes":[{"handle":[`+handle+`,`+handle+`]}]},
		"b":{"listen":["gate+udp/:15","unix//run/s"],"routes":[{"match":[{"test_matcher":{}}],"handle":[`+handle+`]}]}}`)
	places := f.Places()
	for _, at := range append(slices.Clone(places), Place{Network: "tcp", Listener: ":9"}, Place{Network: "udp", Listener: ":16"}) {
		want := slices.DeleteFunc(slices.Clone(places), func(p Place) bool { return p.Network != at.Network || p.Listener != at.Listener })
		if got := f.At(at.Network, at.Listener); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s %s: %v, want %v", at.Network, at.Listener, got, want)
		}
	}
	ports := uint(0)
	f.EachRange(func(_, _ string, n uint) { ports += n })
	if int(ports) != len(places) {
		t.Errorf("the ranges have %d ports, the places are %d", ports, len(places))
	}
	if got := f.Paths(); !slices.Equal(got, []string{"0/0", "0/1"}) {
		t.Errorf("paths are %q", got)
	}
}

// What follows from the places is found out once, an error, too.
func TestSharedIsFoundOnce(t *testing.T) {
	t.Parallel()
	type first int
	type second struct{}
	f, calls := new(Finding), 0
	for range 3 {
		if n, err := Shared(f, func(*Finding) (first, error) { calls++; return 5, nil }); n != 5 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := Shared(f, func(*Finding) (second, error) { calls++; return second{}, errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	}
	if calls != 2 {
		t.Errorf("found out %d times", calls)
	}
}
