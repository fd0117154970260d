package console

import (
	"net/url"
	"reflect"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// No filter that was given gets lost on the way to the API, whatever its value: what is closed would be more than what was meant.
func TestFiltersOfFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want url.Values
	}{
		{nil, url.Values{}},
		{[]string{"--client", ""}, url.Values{"client": {""}}},
		{[]string{"--client", "", "--client", "a,b", "--listener", "\"x\n"}, url.Values{"client": {"", "a,b"}, "listener": {"\"x\n"}}},
		{[]string{"--older", "", "--idle", "1m"}, url.Values{"older": {""}, "idle": {"1m"}}},
		{[]string{"--upstream", "a", "--upstream", "b", "--network", "udp"}, url.Values{"upstream": {"a", "b"}, "network": {"udp"}}},
	} {
		cmd := sessionsCommand()
		must(t, cmd.ParseFlags(c.args))
		if got := (&call{Flags: caddycmd.Flags{FlagSet: cmd.Flags()}}).filter(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %v, want %v", c.args, got, c.want)
		}
	}
}
