package gate

import (
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Index finds what stands at listen addresses by the network and the listener of a connection. A range of ports is one entry, and a
// look-up searches an ordered list, so that neither thousands of addresses nor thousands of ports cost more than they have to.
//
// Everything is added before the first look-up. From then on the index may be used concurrently.
type Index[T any] struct {
	hosts map[indexKey]*spans[T]
	added int
	order sync.Once
}

// indexKey is what the ports of a range have in common.
type indexKey struct {
	network, host string
	ports         bool // false: the host is a path or a descriptor
}

// spans are the ranges of one host.
type spans[T any] struct {
	all  []span[T]
	most []uint // the last port of those up to each of them
}

type span[T any] struct {
	first, last uint
	number      int // in the order in which they were added
	value       T
}

// Add adds a value for so many ports, of which listener is the first, such as ":8000". A listener without a port, such as a path, is
// one.
func (x *Index[T]) Add(network, listener string, ports uint, value T) {
	if ports == 0 {
		return
	}
	key, first := keyOf(network, listener)
	if x.hosts == nil {
		x.hosts = make(map[indexKey]*spans[T])
	}
	s := x.hosts[key]
	if s == nil {
		s = new(spans[T])
		x.hosts[key] = s
	}
	s.all = append(s.all, span[T]{first, first + ports - 1, x.added, value})
	x.added++
}

// At returns the values for a listener, in the order in which they were added.
func (x *Index[T]) At(network, listener string) (found []T) {
	var at []*span[T]
	x.each(network, listener, func(one *span[T]) { at = append(at, one) })
	slices.SortFunc(at, func(a, b *span[T]) int { return a.number - b.number })
	for _, one := range at {
		found = append(found, one.value)
	}
	return found
}

// First returns the value for a listener that was added first. It allocates nothing.
func (x *Index[T]) First(network, listener string) (value T, ok bool) {
	first := -1
	x.each(network, listener, func(one *span[T]) {
		if first < 0 || one.number < first {
			first, value = one.number, one.value
		}
	})
	return value, first >= 0
}

// each calls f with the spans that have the port of a listener.
func (x *Index[T]) each(network, listener string, f func(*span[T])) {
	x.order.Do(x.sort)
	key, port := keyOf(network, listener)
	s := x.hosts[key]
	if s == nil {
		return
	}
	after, _ := slices.BinarySearchFunc(s.all, port, func(one span[T], port uint) int {
		if one.first <= port {
			return -1
		}
		return 1
	})
	for i := after - 1; i >= 0 && s.most[i] >= port; i-- {
		if s.all[i].last >= port {
			f(&s.all[i])
		}
	}
}

func (x *Index[T]) sort() {
	for _, s := range x.hosts {
		slices.SortStableFunc(s.all, func(a, b span[T]) int { return int(a.first) - int(b.first) })
		s.most = make([]uint, len(s.all))
		most := uint(0)
		for i := range s.all {
			most = max(most, s.all[i].last)
			s.most[i] = most
		}
	}
}

func keyOf(network, listener string) (key indexKey, port uint) {
	if colon := strings.LastIndexByte(listener, ':'); colon >= 0 {
		if number, err := strconv.ParseUint(listener[colon+1:], 10, 16); err == nil {
			return indexKey{network, listener[:colon], true}, uint(number)
		}
	}
	return indexKey{network, listener, false}, 0
}
