package forward

import (
	"net"
	"sync"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// countLoops counts the descriptors of the event loops, which are opened for the first session.
var countLoops = sync.OnceFunc(func() { descriptors.Opened(int64(relay.LoopDescriptors())) })

// uncounted bounds the sessions of listeners that do not count them: those of other networks than the gate networks. They
// are counted for the handler instead.
type uncounted struct {
	sessions    descriptors.Listener
	maxSessions int
	reserve     int
}

// take takes the descriptors of a session where its listener has not. It returns how to release them, and false where there
// are as many sessions as there may be, or fewer descriptors than the reserve would be left.
func (u *uncounted) take(sess *session.Session, accepted net.Conn) (release func(), ok bool) {
	if _, counted := accepted.(descriptors.Owner); counted {
		return func() {}, true
	}
	if !gate.Datagrams(sess.Network) {
		return u.sessions.Release, u.sessions.Take(u.maxSessions, u.reserve)
	}
	if _, counted := accepted.(interface{ ListenerAddr() string }); counted { // a session of gate+udp
		return func() {}, true
	}
	release = func() { descriptors.Release(descriptors.PerDatagrams) }
	return release, descriptors.Take(descriptors.PerDatagrams, u.reserve)
}

// spare has the descriptors of second attempts to connect: a session has taken one for its upstream only.
type spare struct{ reserve int }

func (s spare) Take() bool { return descriptors.Take(1, s.reserve) }
func (spare) Release()     { descriptors.Release(1) }
