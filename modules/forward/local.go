package forward

import (
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

var localErrors = meter.Counter("local_connect_errors_total", "Attempts to reach an upstream that this system could not make.", "reason")

// missing is what this system lacks to connect to upstreams. It has as many entries as configs have source addresses, at most twice.
var missing = struct {
	sync.Mutex
	parts map[lack]*missingPart
}{parts: make(map[lack]*missingPart)}

// lack is one thing that is missing.
type lack struct {
	source netip.Addr // not valid where the system chooses
	noPort bool       // else the system does not have the source address
}

type missingPart struct {
	*degraded.Part
	failedAt time.Time
	over     *time.Timer
}

// missingFor is how long nothing must have failed for what was missing to be there again.
const missingFor = 10 * time.Second

// noteLocal counts an attempt that has failed because of this system. What is missing is logged once, until it is there again. Event
// loops call it.
func noteLocal(e *relay.LocalError) {
	reason, message := "source", "connecting to upstreams fails because of a source address"
	fields := []zap.Field{zap.Error(e)}
	if e.NoPort {
		reason, message = "no_port", "no port is left to connect to upstreams from: sessions of UDP that nobody answers make room, sessions of TCP fail"
		fields = append(fields, zap.String("setting", "net.ipv4.ip_local_port_range"))
	}
	if e.Source.IsValid() {
		fields = append(fields, zap.Stringer("source", e.Source))
	}
	localErrors.WithLabelValues(reason).Inc()
	what := lack{e.Source, e.NoPort}
	missing.Lock()
	defer missing.Unlock()
	part := missing.parts[what]
	if part == nil {
		part = &missingPart{Part: degraded.New(reason)}
		missing.parts[what] = part
		part.over = time.AfterFunc(missingFor, func() { endMissing(what) })
	}
	part.failedAt = time.Now()
	part.over.Reset(missingFor)
	part.Begin(logqueue.Default("forward"), message, fields...)
}

func endMissing(what lack) {
	missing.Lock()
	defer missing.Unlock()
	part := missing.parts[what]
	if part != nil && time.Since(part.failedAt) >= missingFor { // else the timer was set anew when it had fired already
		delete(missing.parts, what)
		part.End(logqueue.Default("forward"), "connecting to upstreams works again")
		part.Close()
	}
}
