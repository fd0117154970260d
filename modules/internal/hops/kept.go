package hops

// Keep begins a trip for one socket that is connected before there is a session for it.
func Keep() *Trip { return &Trip{exceeded: func() {}} }

// MoveTo makes a socket of [Keep] one of a session's trip. What has come through it so far is as many hops further from then on.
func (s *Socket) MoveTo(t *Trip) {
	var over *Trip
	table.mu.Lock()
	s.trip, t.second = t, s
	if s.next != nil {
		s.next.hops = t.hops + 1
		over = s.next.raise()
	}
	table.mu.Unlock()
	if over != nil {
		over.exceeded()
	}
}
