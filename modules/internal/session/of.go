package session

// Of reports whether the session is one of a scope.
func (s *Session) Of(sc *Scope) bool { return s.scope == sc }

// UpstreamLabel returns the upstream that the session has, as configured; empty where it has none yet.
func (s *Session) UpstreamLabel() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.label
}
