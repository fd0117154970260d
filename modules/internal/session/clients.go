package session

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// clientIndex finds sessions by the addresses of their clients: the one that has connected, and those that admissions have
// judged, which are others behind PROXY protocol. The zero index is empty.
type clientIndex struct{ table bart.Table[*sessionsOf] }

// sessionsOf are the sessions of one address.
type sessionsOf struct{ all []*Session }

// add adds a session, unless it is there.
func (x *clientIndex) add(s *Session) {
	if s.indexed {
		return
	}
	s.indexed = true
	var room [4]netip.Prefix
	for _, client := range s.appendClients(room[:0]) {
		of, ok := x.table.Get(client)
		if !ok {
			of = new(sessionsOf)
			x.table.Insert(client, of)
		}
		of.all = append(of.all, s)
	}
}

// remove takes a session out, unless it is not there.
func (x *clientIndex) remove(s *Session) {
	if !s.indexed {
		return
	}
	s.indexed = false
	var room [4]netip.Prefix
	for _, client := range s.appendClients(room[:0]) {
		of, ok := x.table.Get(client)
		if !ok {
			continue
		}
		if at := slices.Index(of.all, s); at >= 0 {
			last := len(of.all) - 1
			of.all[at], of.all[last] = of.all[last], nil
			of.all = of.all[:last]
		}
		if len(of.all) == 0 {
			x.table.Delete(client)
		}
	}
}

// appendTo appends the sessions of the clients in a prefix.
func (x *clientIndex) appendTo(all []*Session, clients netip.Prefix) []*Session {
	if clients.IsSingleIP() {
		if of, ok := x.table.Get(clients); ok {
			all = append(all, of.all...)
		}
		return all
	}
	for _, of := range x.table.Subnets(clients) {
		all = append(all, of.all...)
	}
	return all
}

// appendClients appends the addresses by which the session is found, each once, without zones and unmapped.
func (s *Session) appendClients(all []netip.Prefix) []netip.Prefix {
	all = appendClient(all, s.Client.Addr())
	for i := range s.passes {
		all = appendClient(all, s.passes[i].Client)
	}
	return all
}

func appendClient(all []netip.Prefix, client netip.Addr) []netip.Prefix {
	if !client.IsValid() {
		return all // on a unix socket, which no list has
	}
	client = client.Unmap()
	single := netip.PrefixFrom(client, client.BitLen())
	if slices.Contains(all, single) {
		return all
	}
	return append(all, single)
}
