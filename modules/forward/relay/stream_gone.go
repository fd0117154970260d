package relay

import (
	"net"
	"sync"
	"time"
)

// watchedClient is the watch of a client for which there is no upstream yet.
type watchedClient struct {
	mu   sync.Mutex
	stop func() // nil while the client is not watched
	over bool
}

// dialWatched is dial, and notices a client that leaves.
func (g *goroutineStream) dialWatched() (net.Conn, error) {
	if g.cfg.Hangup == nil {
		return g.dial()
	}
	late := time.AfterFunc(goneAfter, g.watchClient)
	defer late.Stop()
	defer g.watched.end()
	return g.dial()
}

// clientWaits implements [Relay.ClientWaits].
func (g *goroutineStream) clientWaits() { g.watchClient() }

// watchClient has the relay end when the client leaves.
func (g *goroutineStream) watchClient() {
	w := &g.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.stop != nil || g.cfg.Hangup == nil || g.client.sock == nil {
		return
	}
	spoken := len(g.cfg.Prefetched) > 0 || g.client.raw == nil // a wrapper such as TLS has read something
	w.stop = g.cfg.Hangup(g.client.sock, spoken, func(reset bool) {
		reason := ClientFIN
		if reset {
			reason = ClientReset
		}
		go g.leaves(reason)
	})
}

// leaves cuts the relay unless it has an upstream by now.
func (g *goroutineStream) leaves(reason Reason) {
	w := &g.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		g.cut(reason)
	}
}

// end stops the watch.
func (w *watchedClient) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.stop != nil {
		w.stop()
	}
}
