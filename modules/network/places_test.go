package network

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

// taken returns the sessions that were given a place, in order.
func (s *packetSocket) taken() (sessions []*PacketSession) {
	for len(s.accepted) > 0 {
		sessions = append(sessions, <-s.accepted)
	}
	return sessions
}

// flood is a datagram from each of the ports.
func (s *packetSocket) flood(first, n uint32) {
	for port := first; port < first+n; port++ {
		s.deliver(&fiveTuple{port: port}, fmt.Append(nil, port), false)
	}
}

func expectPlaces(t *testing.T, s *packetSocket, open, queued int) {
	t.Helper()
	if got := s.refs - 1; got != open || s.table.queued != queued {
		t.Errorf("%d sessions have a place and %d wait, want %d and %d", got, s.table.queued, open, queued)
	}
}

func expectPorts(t *testing.T, sessions []*PacketSession, want ...uint32) {
	t.Helper()
	var got []uint32
	for _, c := range sessions {
		got = append(got, c.tuple.port)
	}
	if !slices.Equal(got, want) {
		t.Errorf("sessions of %v have a place, want %v", got, want)
	}
}

// However slowly handlers end what was evicted, and whatever comes meanwhile, no more than the cap are open. Those that wait
// get their places in order, with all of their datagrams, and those that are evicted while they wait never do.
func TestEvictedSessionHasItsPlaceUntilItIsClosed(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 10, perClient: 10})
	s.flood(0, 10)
	slow := s.taken()
	s.flood(10, 5000)
	s.flood(5000, 10) // the second datagrams of those that wait
	expectPorts(t, s.taken())
	expectPlaces(t, s, 10, 10)
	for i, c := range slow {
		if !c.ended.Load() {
			t.Fatal("not evicted")
		}
		_ = c.Close()
		port := uint32(5000 + i)
		next := s.taken()
		expectPorts(t, next, port)
		for range 2 {
			expectRead(t, next[0], 10, fmt.Sprint(port))
		}
		expectPlaces(t, s, 10, 9-i)
	}
	if evicted := s.settings.Load().counts.Evicted.Load(); evicted != 5000 {
		t.Errorf("%d were counted as evicted", evicted)
	}
}

func TestPlaceIsFreeWhenASessionEndsByItself(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 2, perClient: 2})
	s.flood(0, 2)
	open := s.taken()
	s.flood(2, 1)
	expectPlaces(t, s, 2, 1)
	_ = open[1].Close() // while 0, which was evicted, is still ending
	expectPorts(t, s.taken(), 2)
	s.flood(3, 1) // the table has room, but there is no place
	expectPlaces(t, s, 2, 1)
	_ = open[0].Close()
	expectPorts(t, s.taken(), 3)
	expectPlaces(t, s, 2, 0)
}

// What one client has that still ends takes places, but none of those that the client may have.
func TestOneClientsEndingSessionsTakePlaces(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 5, perClient: 2})
	s.flood(0, 7)
	expectPorts(t, s.taken(), 0, 1, 2, 3, 4)
	expectPlaces(t, s, 5, 2)
	if len(s.table.sessions) != 2 {
		t.Errorf("%d sessions of one client", len(s.table.sessions))
	}
}

func TestWaitingSessionsAreBounded(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 2 * maxNew, perClient: 2 * maxNew})
	s.flood(0, maxNew)
	open := s.taken()
	s.flood(maxNew, maxNew)
	open = append(open, s.taken()...)
	s.flood(2*maxNew, maxNew+5)
	if got := s.dropped(listeners.DropAcceptQueue); got != 5 {
		t.Errorf("%d were dropped", got)
	}
	expectPlaces(t, s, 2*maxNew, maxNew)
	for _, c := range open { // would block if there were more than the queue takes
		_ = c.Close()
	}
	expectPlaces(t, s, maxNew, 0)
	s.flood(9*maxNew, 1)
	if got := s.dropped(listeners.DropAcceptQueue); got != 6 {
		t.Errorf("%d were dropped while the queue was full", got)
	}
}

func TestPlacesFollowTheLimit(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 4, perClient: 10})
	limit := func(total int) {
		s.activated(&generation{settings: settings{packets: sessionLimits{total: total, perClient: 10}, counts: s.settings.Load().counts}})
	}
	s.flood(0, 4)
	open := s.taken()
	limit(2)
	s.flood(4, 1)
	expectPlaces(t, s, 4, 1)
	_ = open[0].Close() // evicted, so its place is taken as long as there are too many
	expectPorts(t, s.taken(), 4)
	_ = open[1].Close() // by itself
	_ = open[2].Close()
	expectPlaces(t, s, 2, 0)
	s.flood(5, 2)
	expectPlaces(t, s, 2, 2)
	limit(3)
	expectPorts(t, s.taken(), 5)
	expectPlaces(t, s, 3, 1)
}

func TestDestructLeavesNoneWaiting(t *testing.T) {
	t.Parallel()
	s, err := openPacketSocket(t.Context(), udpEndpoint(t, freeUDPAddress(t)), net.ListenConfig{}, newTestSocket(sessionLimits{total: 2, perClient: 9}).settings.Load())
	if err != nil {
		t.Fatal(err)
	}
	s.flood(0, 2)
	open := s.taken()
	s.flood(2, 1)
	_ = open[1].Close()
	s.flood(3, 1)
	waiting := s.table.queue.next.session
	if waiting == nil || waiting.tuple.port != 3 {
		t.Fatal("the last one does not wait")
	}
	if err := s.Destruct(); err != nil {
		t.Error(err)
	}
	if n, err := waiting.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("one that waited: %d, %v", n, err)
	}
	_ = open[0].Close()
	if s.refs != 0 || s.table.queued != 0 || len(s.accepted) != 0 || s.held.Load() != 0 {
		t.Errorf("%d references, %d wait, %d to be accepted, %d bytes are left", s.refs, s.table.queued, len(s.accepted), s.held.Load())
	}
}
