package session

import (
	"net"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/throttle"
)

// A session takes the throttles that handlers set before it began, and releases them when it ends.
func TestSessionTakesThrottles(t *testing.T) {
	t.Parallel()
	ended := 0
	refuse := &throttle.Throttle{
		Limits: throttle.Limits{AllowUp: func(int) bool { return false }},
		End:    func() { ended++ },
	}
	a, b := net.Pipe()
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	arrival := Arrival{Conn: a, Network: "tcp", Listener: newLabel()}
	arrival.Throttle(refuse)
	arrival.Throttle(new(throttle.Throttle)) // which need not have an End
	if arrival.Begun() {
		t.Error("a session without Begin")
	}
	scope, _, _ := newScope(t, 0, 0)
	s := arrival.Begin(scope)
	if !arrival.Begun() || s.Limits().AllowUp(1) {
		t.Errorf("the session has other limits: %+v", s.Limits())
	}
	s.End(End{})
	s.End(End{})
	if ended != 1 {
		t.Errorf("End was called %d times", ended)
	}
}
