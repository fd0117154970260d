package state

import (
	"slices"
	"sync"
)

// Youngest has what each config brings for something that configs share, such as a storage. The value of the youngest config is in use: that is
// the running one, once a younger one was rejected. The zero value has none.
type Youngest[T any] struct {
	mu  sync.Mutex
	all []*T
}

// Use adds the value of one more config. The function that is returned removes it.
func (y *Youngest[T]) Use(value T) (gone func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	one := &value
	y.all = append(y.all, one)
	return func() {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.all = slices.DeleteFunc(y.all, func(other *T) bool { return other == one })
	}
}

// Latest returns the value in use, and false where there is none.
func (y *Youngest[T]) Latest() (value T, ok bool) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.all) == 0 {
		return value, false
	}
	return *y.all[len(y.all)-1], true
}

// Value returns the value in use. There has to be one.
func (y *Youngest[T]) Value() T {
	y.mu.Lock()
	defer y.mu.Unlock()
	return *y.all[len(y.all)-1]
}
