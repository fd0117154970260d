package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// resolved has what all handlers know of names. There is one value.
var resolved = state.NewPool[struct{}, *knownNames]()

var lookups = meter.Counter("name_lookups_total", "Lookups of names of upstreams.", "result")

// The results of a lookup.
const (
	lookupAnswered = "answered"
	lookupNotFound = "not_found"
	lookupFailed   = "failed"
)

// knownNames is what all handlers know of names. It outlives their configs.
type knownNames struct {
	*upstream.Names
	old map[oldName]*degraded.Part // guarded by the Names
}

type oldName struct{ network, host string }

// newKnownNames returns names that lookup looks up, nil: the system.
func newKnownNames(lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)) *knownNames {
	k := &knownNames{old: make(map[oldName]*degraded.Part)}
	k.Names = upstream.NewNames(upstream.NamesConfig{Lookup: lookup, Looked: countLookup, Old: k.useOld, Over: k.over})
	return k
}

// Destruct has nothing to release: the handlers have released their names.
func (*knownNames) Destruct() error { return nil }

// holdNames has a pool use what is known of names, until it releases them and the reference. It returns nil where no upstream has a name.
func holdNames(pool *upstream.Pool) (*state.Ref[*knownNames], error) {
	if pool.Fixed() {
		return nil, nil
	}
	for _, result := range []string{lookupAnswered, lookupNotFound, lookupFailed} {
		lookups.WithLabelValues(result) // begin at 0
	}
	known, err := resolved.Acquire(struct{}{}, func() (*knownNames, error) { return newKnownNames(nil), nil })
	if err == nil {
		pool.Hold(known.Value().Names)
	}
	return known, err
}

func countLookup(err error) {
	result := lookupAnswered
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		result = lookupNotFound
	case err != nil:
		result = lookupFailed
	}
	lookups.WithLabelValues(result).Inc()
}

// useOld says that sessions use an old answer.
func (k *knownNames) useOld(network, host string, age time.Duration, err error) {
	part := degraded.New("name")
	k.old[oldName{network, host}] = part
	part.Begin(logqueue.Default("forward"), "a name can't be looked up, its last answer is used", zap.String("name", host),
		zap.Duration("age", age), zap.Error(err))
}

// over says that they do not any more.
func (k *knownNames) over(network, host string, err error) {
	key, log := oldName{network, host}, logqueue.Default("forward")
	part := k.old[key]
	delete(k.old, key)
	switch {
	case errors.Is(err, upstream.ErrReleased):
	case err != nil:
		part.End(log, "there is no such name any more", zap.String("name", host), zap.Error(err))
	default:
		part.End(log, "a name can be looked up again", zap.String("name", host))
	}
	part.Close()
}
