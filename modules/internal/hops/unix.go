package hops

import (
	"crypto/rand"
	"hash/maphash"
	"sync/atomic"
)

// listening is how many handlers serve unix sockets.
var listening atomic.Int64

// ListenUnix notes that a handler serves a unix socket. As long as there is one, connections to unix sockets may come back.
func ListenUnix() { listening.Add(1) }

// LeaveUnix takes back one call of ListenUnix.
func LeaveUnix() { listening.Add(-1) }

// ListensUnix reports whether connections to unix sockets may come back and can be told from others.
func ListensUnix() bool { return hasNames && listening.Load() > 0 }

// ConnectingUnix is Connecting for a unix socket. The name is for the caller to bind the socket to before it connects it. It is no
// other socket's, also in another network namespace, where it is not known to be taken. ConnectingUnix returns nil where no
// connection can come back by the socket.
func (t *Trip) ConnectingUnix() (name string, s *Socket) {
	if !ListensUnix() {
		return "", nil
	}
	name = "@portgate-" + rand.Text()
	table.active.Add(1)
	table.mu.Lock()
	defer table.mu.Unlock()
	s = t.opens(Socket{trip: t, local: keyOfName(name)})
	table.sockets[s.local] = s
	return name, s
}

func keyOfName(name string) key { return key(max(maphash.String(seed, name), 1)) }

// beginUnix is Begin for the client of a unix socket. The name of a socket is known before it is connected.
func (t *Trip) beginUnix(name string) (ok bool) {
	table.mu.Lock()
	defer table.mu.Unlock()
	if s := table.sockets[keyOfName(name)]; s != nil {
		t.follow(s)
	}
	return t.hops <= Max
}
