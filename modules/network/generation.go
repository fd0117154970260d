package network

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/global"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// shared is the socket of an address, which generations share.
type shared interface {
	caddy.Destructor // closes the socket when its last generation has closed
	Addr() net.Addr
	acceptFor(g *generation) (accepted, error)

	// for an address that is changed to one that overlaps it
	sharePort(on bool) error
	hide() bool
	settle(until time.Time)

	// by embedding a lineage
	onDestruct(f func())
	ofConfig(config <-chan struct{}) *generation
	setMoving()
	isMoving() bool
	isHidden() bool
	hiddenSince() time.Time
	hideLast(config <-chan struct{}, hide func() bool) bool
	add(g *generation) error
	interrupt(g *generation)
	remove(g *generation)
}

// accepted is a connection as a socket accepts it.
type accepted interface {
	net.Conn
	client() netip.AddrPort
	forServer(watcher *session.Scope) net.Conn // what a server gets, which closes it when its handlers have returned
}

// generation is the listener that one config has on a socket.
type generation struct {
	endpoint
	config   <-chan struct{} // ends with the config, and tells one config from another
	settings settings
	watcher  *session.Scope // of those that no route takes; nil where no server of layer4 listens
	scope    *session.Scope // of the connections that are refused; nil outside a config

	socket    shared
	active    chan struct{} // closed when there is no older generation any more
	accepting sync.Mutex    // held while in accept
	closed    chan struct{}
	drained   chan struct{} // closed when Accept has returned for good
	drain     sync.Once

	steps []fastpath.Step // serve what is accepted; nil where Accept returns it

	forgetContext func() bool
	close         func() error
}

// settings are what a config wants of its sockets.
type settings struct {
	maxSessions int // of TCP
	reserve     int // of descriptors
	packets     sessionLimits
	counts      *listeners.Datagrams // nil for TCP
	opening     *opening             // nil where no load balancer passes datagrams on
}

func newGeneration(ctx context.Context, ep endpoint) (*generation, error) {
	options, err := global.Of(ctx)
	if err != nil {
		return nil, err
	}
	steps, routed := fastpath.Steps(ctx, ep.Name, ep.listener)
	g := &generation{
		endpoint: ep,
		steps:    steps,
		config:   ctx.Done(),
		settings: settings{maxSessions: options.MaxSessions, reserve: options.ReserveDescriptors},
		active:   make(chan struct{}),
		closed:   make(chan struct{}),
		drained:  make(chan struct{}),
	}
	if ep.Transport == "udp" {
		g.settings.packets.total = min(options.UDPMaxSessions, descriptors.DefaultShare(options.ReserveDescriptors)/descriptors.PerDatagrams)
		g.settings.packets.perClient = options.UDPMaxSessionsPerClient
		g.settings.counts = listeners.DatagramsOf(ep.listener)
	}
	if config, ok := ctx.(caddy.Context); ok {
		if g.scope, err = session.NewScope(config, 0, 0); err != nil { // with the metrics of datagrams
			return nil, err
		}
		g.scope.Hold("listener", ep.listener)
		if routed {
			g.watcher = g.scope
		}
		if ep.Transport != "udp" {
			return g, nil
		}
		if opener := fastpath.OpenerOf(ctx, ep.Name, ep.listener); opener != nil {
			g.settings.opening = &opening{Opener: opener, scope: g.scope, listener: ep.listener, keepFields: steps == nil}
		}
	}
	return g, nil
}

// join makes g a generation of the socket, until it is closed or ctx ends. The latter is for a config that
// fails to start: Caddy stops the apps that had started before, but not the one that has failed.
func (g *generation) join(ctx context.Context, ref *state.Ref[shared]) error {
	g.socket = ref.Value()
	if err := g.socket.add(g); err != nil {
		return err
	}
	g.close = sync.OnceValue(func() error {
		moved := g.socket.isMoving() && retire(g)
		g.socket.interrupt(g)
		if moved {
			g.waitUntilDrained()
		}
		g.accepting.Lock() // wait until it has left
		defer g.accepting.Unlock()
		g.socket.remove(g)
		return ref.Release()
	})
	g.forgetContext = context.AfterFunc(ctx, func() { _ = g.close() })
	return nil
}

// Accept waits until no older generation lives, and then for a connection. It fails only once g is closed. Where
// there are steps, it has them serve the connections, and returns none.
func (g *generation) Accept() (net.Conn, error) {
	select {
	case <-g.active:
	default:
		select {
		case <-g.active:
		case <-g.closed:
			return nil, net.ErrClosed
		}
	}
	g.accepting.Lock()
	defer g.accepting.Unlock()
	network, arrival := g.socket.Addr().Network(), new(session.Arrival)
	for {
		conn, err := g.socket.acceptFor(g)
		if err != nil {
			g.drain.Do(func() { close(g.drained) })
			return nil, err
		}
		if g.steps == nil {
			return conn.forServer(g.watcher), nil
		}
		*arrival = session.Arrival{Conn: conn, Network: network, Listener: g.listener, Client: conn.client()}
		fastpath.Serve(g.steps, arrival, g.scope)
	}
}

// waitUntilDrained returns when a server has taken what waits in the accept queue of a socket that goes. layer4 calls Accept again after
// each connection.
func (g *generation) waitUntilDrained() {
	timeout := time.NewTimer(maxDrain)
	defer timeout.Stop()
	select {
	case <-g.drained:
	case <-timeout.C:
	}
}

// Close makes the next generation active; the last one closes the socket. Once it has returned, g
// accepts nothing more.
func (g *generation) Close() error {
	g.forgetContext()
	return g.close()
}

func (g *generation) isClosed() bool {
	select {
	case <-g.closed:
		return true
	default:
		return false
	}
}

func (g *generation) Addr() net.Addr { return g.socket.Addr() }

func (c *Conn) forServer(watcher *session.Scope) net.Conn {
	c.watch(watcher)
	return c
}

// ListenerAddr returns the address of the listener as it is configured, such as ":8080". It fits a metrics
// label: unlike LocalAddr, it doesn't depend on what the client does.
func (c *Conn) ListenerAddr() string { return c.listenerAddr }

// Interface guards
var (
	_ net.Listener = (*generation)(nil)
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
)
