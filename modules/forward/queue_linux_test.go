package forward

import (
	"net"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// evicted is a session of datagrams that the network has ended before anybody serves it.
type evicted struct{ net.Conn }

func (evicted) Attach(func([]byte) bool, func(string)) bool          { return false }
func (evicted) ReplyPath() (fd int, name, control []byte)            { return -1, nil, nil }
func (evicted) Answered()                                            {}
func (evicted) ServedBy(interface{ Unanswered(time.Duration) bool }) {}

// A session of datagrams that the network ends while it is about to wait gives its place in the queue up: it would be the first one for ever.
func TestEvictedSessionLeavesTheQueue(t *testing.T) {
	t.Parallel()
	name := "udp/" + refuses()
	h, _, _ := provision(t, queueing(name, 1, 10, "1h"))
	held := counts.Hold(name)
	defer held.Release()
	other := held.Begin() // has the only place
	defer other.End()
	conn, _ := net.Pipe()
	h.Serve(&session.Arrival{Conn: evicted{conn}, Network: "udp", Listener: "test:evicted"})
	expectWaiting(t, h, 0)
}

// A session that has a place and finds that nothing was discovered in time gives the place up.
func TestSessionWithoutAnyUpstreamLeavesTheQueue(t *testing.T) {
	t.Parallel()
	h, _, _ := provision(t, queueing(refuses(), 1, 10, "1h"))
	first, err := h.queue.Enter()
	if err != nil {
		t.Fatal(err)
	}
	sess := (&session.Arrival{Network: "tcp", Listener: "test:nothing"}).Begin(h.scope)
	w := h.way(sess, nil, h.rosters.now.Load())
	if w.awaits = make(chan struct{}); w.ready() {
		t.Fatal("it is ready, though others wait")
	}
	w.wait.over()
	w.wait.over()
	sess.End(session.End{})
	first.Leave()
	expectWaiting(t, h, 0)
}
