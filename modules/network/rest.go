package network

import (
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// How long a loop rests after an error that did not go away: from too short for a client to notice, to
// long enough to leave the processor alone, and still short against the two seconds within which a port has
// to answer again when there are descriptors.
const (
	minPause = 5 * time.Millisecond
	maxPause = 100 * time.Millisecond

	logInterval = time.Second // of one socket: an attack must not fill the log
)

// rest is how a loop on a socket goes on after errors.
type rest struct{ lastLogged time.Time }

// pause lets time pass, but not after stop is closed. The first error in a row may concern a single
// connection, which has then left the queue: there is no pause. An error that stays means that the process
// or the machine is out of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM).
func (r *rest) pause(stop <-chan struct{}, failures int, message string, fields ...zap.Field) {
	if failures == 0 {
		return
	}
	select {
	case <-stop:
		return
	default:
	}
	if now := time.Now(); now.Sub(r.lastLogged) >= logInterval {
		r.lastLogged = now
		logqueue.Default("network").Error(message, fields...)
	}
	pause := time.NewTimer(min(minPause<<min(failures-1, 10), maxPause))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-stop:
	}
}
