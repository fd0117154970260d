// Package recheck lets what has admitted sessions change its mind: an access control list closes the living sessions of
// clients that it denies by now.
package recheck

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// Admission admits sessions and may later close those that it admitted. There is one for each access control list of a
// config. After a reload the successor at the same place of the new config may close them too.
type Admission struct{ edition atomic.Int64 }

// Edition returns the number of the rules as they are now. Read it before a client is judged: the [Pass] then says by
// which rules the client was admitted.
func (a *Admission) Edition() int64 { return a.edition.Load() }

// Changed is called when the rules have changed, before living sessions are judged again. A session that was admitted
// by the rules of before, and has not begun yet, is then noticed when it begins.
func (a *Admission) Changed() { a.edition.Add(1) }

// Pass is the note that an admission makes on a connection that it admits.
type Pass struct {
	Admission *Admission
	Edition   int64
	// Client is the address that was judged. Behind PROXY protocol it is the one that the header names.
	Client netip.Addr
	// Places are where the admission stands in its config.
	Places []string
}

// Outdated reports whether the rules have changed since.
func (p *Pass) Outdated() bool { return p.Admission.Edition() != p.Edition }

// Watcher is who judges living sessions again for another reason than a changed list. Its methods must not block.
type Watcher interface {
	// RecheckAll is called when a config was replaced.
	RecheckAll()
	// RecheckClient is called when a session has begun whose client was admitted by outdated rules.
	RecheckClient(netip.Addr)
}

var watchers = struct {
	sync.Mutex
	all map[Watcher]struct{}
}{all: make(map[Watcher]struct{})}

// Watch has the watcher called until end is.
func Watch(w Watcher) (end func()) {
	watchers.Lock()
	defer watchers.Unlock()
	watchers.all[w] = struct{}{}
	return func() {
		watchers.Lock()
		defer watchers.Unlock()
		delete(watchers.all, w)
	}
}

// RequestAll calls all watchers because a config was replaced.
func RequestAll() { request(Watcher.RecheckAll) }

// RequestClient calls all watchers because a client was admitted by outdated rules.
func RequestClient(client netip.Addr) {
	request(func(w Watcher) { w.RecheckClient(client) })
}

func request(call func(Watcher)) {
	watchers.Lock()
	defer watchers.Unlock()
	for w := range watchers.all {
		call(w)
	}
}
