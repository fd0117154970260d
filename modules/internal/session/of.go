package session

// Of reports whether the session is one of a scope.
func (s *Session) Of(sc *Scope) bool { return s.scope == sc }

// Drop no longer keeps the series with a value of a label: the config has it no more, and no session either.
func (sc *Scope) Drop(label, value string) { sc.values.Drop(label, value) }

// UpstreamLabel returns the upstream that the session has, as configured; empty where it has none yet.
func (s *Session) UpstreamLabel() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.label
}
