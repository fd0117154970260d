// Package state holds what outlives a reload: sockets, counts, limits, health.
//
// A new config is started before the old one is stopped, so both hold a reference to what they share, and
// it goes away with the last one. Share facts this way, never the judgment that one handler made of them.
package state

import (
	"sync"

	"github.com/caddyserver/caddy/v2"
)

// Pool hands out references to values that are shared under a key. It constructs and destructs one value at
// a time: a destructor that closes a socket is done before a constructor binds its address again. Neither
// may therefore use the pool itself.
type Pool[K comparable, V caddy.Destructor] struct {
	mu    sync.Mutex
	usage *caddy.UsagePool
}

// NewPool returns an empty pool.
func NewPool[K comparable, V caddy.Destructor]() *Pool[K, V] {
	return &Pool[K, V]{usage: caddy.NewUsagePool()}
}

// Acquire returns a reference to the value of key, which it constructs where there is none. After an error
// of construct the pool is as it was before.
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

// Each calls f with every value there is, until f returns false. f may not use the pool.
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

// Release gives the reference back; the last one destructs the value and returns the destructor's error. A
// second call does nothing and returns the same. A nil reference can be released, which spares the Cleanup
// of a module whose Provision has failed the question how far it came.
func (r *Ref[V]) Release() error {
	if r == nil {
		return nil
	}
	return r.release()
}
