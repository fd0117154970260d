package session

import "sync/atomic"

// Terms are what a handler holds a connection to that another one serves. Once there is a session, they are the
// session's.
type Terms struct {
	Limits

	// End is called once the session has ended, or the connection is closed that never had one. It may be called
	// again. It may be nil.
	End func()

	taken atomic.Bool // by a session
}

// termsKey is where a connection carries its terms until its session begins.
const termsKey = "portgate.terms"

// Agree notes terms for the session of the arrival, which must not have begun.
func (a *Arrival) Agree(terms *Terms) {
	if a.cx != nil {
		all, _ := a.cx.GetVar(termsKey).([]*Terms)
		a.cx.SetVar(termsKey, append(all, terms))
		return
	}
	a.terms = append(a.terms, terms)
}

// Begun reports whether the arrival has a session.
func (a *Arrival) Begun() bool {
	if a.cx != nil {
		_, ok := a.cx.GetVar(varKey).(*Session)
		return ok
	}
	return a.session != nil
}

// take makes terms the session's.
func (s *Session) take(terms []*Terms) {
	s.terms = terms
	for _, t := range terms {
		s.Limit(t.Limits)
		t.taken.Store(true)
	}
}

func (s *Session) endTerms() {
	for _, t := range s.terms {
		if t.End != nil {
			t.End()
		}
	}
}
