package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// An address can change to one that overlaps it, such as 127.0.0.1:80 to :80, within one reload. The sockets of both configs are
// bound at the same time then, which the system allows while both have SO_REUSEPORT: they have it for this moment only. The kernel
// gives what arrives to the more specific address. So when the old config closes its socket, that is hidden first, which leaves
// what arrives from then on to the new one, and closed when what it had received before was served.

// ports has the sockets of each port, so that whoever moves thousands of them need not look at all for each.
var ports = struct {
	mu  sync.Mutex
	all map[portKey]map[socketKey]shared
}{all: make(map[portKey]map[socketKey]shared)}

type portKey struct {
	transport string
	port      uint16
}

func (k *socketKey) port() portKey { return portKey{k.transport, k.addr.Port()} }

// noted has the socket that open opens noted until it is destructed.
func noted(key socketKey, open openFunc) openFunc {
	return func(ctx context.Context, cfg net.ListenConfig) (shared, error) {
		s, err := open(ctx, cfg)
		if err != nil || key.descriptor != 0 || key.addr.Port() == 0 {
			return s, err // nothing overlaps it
		}
		ports.mu.Lock()
		defer ports.mu.Unlock()
		at := ports.all[key.port()]
		if at == nil {
			at = make(map[socketKey]shared, 1)
			ports.all[key.port()] = at
		}
		at[key] = s
		s.onDestruct(func() {
			ports.mu.Lock()
			defer ports.mu.Unlock()
			if delete(at, key); len(at) == 0 {
				delete(ports.all, key.port())
			}
		})
		return s, nil
	}
}

// besides returns the sockets whose addresses overlap that of g.
func besides(g *generation) (others []shared) {
	if g.Inherited {
		return nil
	}
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for key, s := range ports.all[portKey{g.Transport, g.addr.Port()}] {
		if s != g.socket && overlap(key.addr, g.addr) {
			others = append(others, s)
		}
	}
	return others
}

// acquireBeside opens the socket of g beside sockets of the running config that overlap, because of which it could not be bound.
func acquireBeside(ctx context.Context, key socketKey, g *generation, cfg net.ListenConfig, open openFunc, inUse error) (*state.Ref[shared], error) {
	others := besides(g)
	if g.Inherited || len(others) == 0 {
		return nil, inUse
	}
	for _, other := range others {
		if own := other.ofConfig(g.config); own != nil {
			return nil, fmt.Errorf("%w: this config listens on %q as well, which overlaps", inUse, own.listener)
		}
	}
	control := cfg.Control
	cfg.Control = func(network, address string, conn syscall.RawConn) error {
		if control != nil {
			if err := control(network, address, conn); err != nil {
				return err
			}
		}
		return sharePort(conn, true)
	}
	for _, other := range others {
		_ = other.sharePort(true) // where it fails, binding does
		defer func() { _ = other.sharePort(false) }()
	}
	ref, err := sockets.Acquire(key, func() (shared, error) { return open(ctx, cfg) })
	if err != nil {
		return nil, fmt.Errorf("%w: another config listens on %q, which overlaps: load a config without that address first, and then this one",
			err, others[0].Addr())
	}
	err = ref.Value().sharePort(false)
	ref.Value().setMoving()
	for _, other := range others {
		other.setMoving()
	}
	if err != nil {
		return nil, errors.Join(err, ref.Release())
	}
	return ref, nil
}

const (
	// retirement is how long sockets that are hidden are kept at least: for the last packets of handshakes that had begun. It is longer
	// than a packet takes round the world.
	retirement = 300 * time.Millisecond

	// maxAnswer bounds how long they are kept for answers to datagrams that were received: a resolver waits for so long, before it asks
	// again (resolv.conf(5)).
	maxAnswer = 5 * time.Second

	// maxDrain bounds the time that a server takes for what is left in the accept queue then.
	maxDrain = time.Second
)

// retire hides the sockets that end with the config of g and that others overlap, all of them at once, and waits until what that of g
// has received is served, also where another call has hidden it. It tells whether that of g is one of them.
func retire(g *generation) (moved bool) {
	if !g.socket.isHidden() {
		if len(besides(g)) == 0 { // since the reload in which it was moved
			return false
		}
		hideAll(g.config)
	}
	since := g.socket.hiddenSince()
	if since.IsZero() {
		return false
	}
	time.Sleep(time.Until(since.Add(retirement)))
	g.socket.settle(since.Add(maxAnswer))
	return true
}

// hideAll hides the sockets that end with a config and that others overlap.
func hideAll(config <-chan struct{}) {
	var ending []shared
	sockets.Each(func(_ socketKey, s shared) bool {
		if s.isMoving() && s.ofConfig(config) != nil {
			ending = append(ending, s)
		}
		return true
	})
	for _, s := range ending {
		if own := s.ofConfig(config); own != nil && len(besides(own)) > 0 {
			s.hideLast(config, s.hide)
		}
	}
}
