package forward

import (
	"fmt"
	"net"
	"testing"
)

// A session that waits while a reload brings the same handler again goes by what that knows, of discovered upstreams and of run-time orders.
func TestWaitingSessionsFollowTheNextConfig(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		full, later := echo(t), named(t, "127.0.0.1:0", "later ")
		source, config := dynamicTo(t, `, "queue": {"count": 9, "duration": "1h"}`)
		source.says(lists(t, full+" max_connections=1"))
		h, _, unload := provision(t, config)
		first := client(h)
		exchange(t, first, "first")
		waits := client(h)
		expectWaiting(t, h, 1)
		provision(t, config)
		unload()
		source.says(lists(t, full+" max_connections=1", later))
		read(t, waits, "later ")
		finish(t, waits)
		finish(t, first)
	})
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		drained := named(t, "127.0.0.1:0", "back ")
		setUpstream(t, drained, drain, noWeight)
		config := fmt.Sprintf(`{"to": [%q], "lb_try_duration": "1h", "lb_try_interval": "20ms"}`, drained)
		h, _, unload := provision(t, config)
		waits := client(h)
		provision(t, config)
		unload()
		setUpstream(t, drained, ready, noWeight)
		read(t, waits, "back ")
		finish(t, waits)
	})
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		first := named(t, "127.0.0.1:0", "first ")
		source, config := dynamicTo(t, `, "connect_timeout": "1m"`)
		source.says(errAway)
		h, _, unload := provision(t, config)
		waits := client(h)
		provision(t, config)
		unload()
		source.says(lists(t, first))
		read(t, waits, "first ")
		finish(t, waits)
	})
}
