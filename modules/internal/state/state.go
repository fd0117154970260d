// Package state keeps what outlives a reload: sockets, counts, limits, health.
//
// Caddy starts the new config before it stops the old one. Both acquire a reference to what they share, and the last release
// destructs it. Share facts this way (a socket, a count), never what one handler decided about them.
package state

import (
	"sync"

	"github.com/caddyserver/caddy/v2"
)

// Pool returns references to values that are shared under a key. It constructs and destructs one value at a time, so that a
// destructor has closed a socket before a constructor binds the same address. For the same reason neither may use the pool.
type Pool[K comparable, V caddy.Destructor] struct {
	mu    sync.Mutex
	usage *caddy.UsagePool
}

// NewPool returns an empty pool.
func NewPool[K comparable, V caddy.Destructor]() *Pool[K, V] {
	return &Pool[K, V]{usage: caddy.NewUsagePool()}
}

// Acquire returns a reference to the value of key. If there is none, it calls construct; after an error of construct the pool
// is unchanged.
func (p *Pool[K, V]) Acquire(key K, construct func() (V, error)) (*Ref[V], error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	value, _, err := p.usage.LoadOrNew(key, func() (caddy.Destructor, error) { return construct() })
	if err != nil {
		return nil, err
	}
	release := func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		_, err := p.usage.Delete(key)
		return err
	}
	return &Ref[V]{value: value.(V), release: sync.OnceValue(release)}, nil
}

// Each calls f with every value until f returns false. f must not use the pool.
func (p *Pool[K, V]) Each(f func(key K, value V) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.usage.Range(func(key, value any) bool { return f(key.(K), value.(V)) })
}

// Ref is one reference to a value in a pool.
type Ref[V any] struct {
	value   V
	release func() error
}

// Value returns the value, which lives until the reference is released.
func (r *Ref[V]) Value() V { return r.value }

// Release returns the reference to the pool. The last release destructs the value and returns the destructor's error. Further
// calls do nothing and return the same error. A nil reference may be released, so Cleanup needs no checks after a Provision
// that failed half-way.
func (r *Ref[V]) Release() error {
	if r == nil {
		return nil
	}
	return r.release()
}
