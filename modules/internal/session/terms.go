package session

import "time"

// Terms are what a handler holds a session to that another one serves.
type Terms struct {
	// Up and Down hold the bytes of one direction to a rate; nil does not.
	Up, Down Pacer

	// Datagram is asked for each datagram of the client whether it may pass. It does not block. Nil lets all pass.
	Datagram func() bool

	// End is called once, when the session ends. It may be nil.
	End func()
}

// Pacer holds bytes to a rate. Those who move them move up to Turn at a time, and then tell Moved, which says for how long to
// pause. Before the first bytes Moved is called with 0. A Pacer is used by one goroutine at a time, and does not block.
type Pacer interface {
	Turn() int
	Moved(n int) (pause time.Duration)
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

// Terms returns what the session is held to.
func (s *Session) Terms() []*Terms { return s.terms }

// Begun reports whether the arrival has a session.
func (a *Arrival) Begun() bool {
	if a.cx != nil {
		_, ok := a.cx.GetVar(varKey).(*Session)
		return ok
	}
	return a.session != nil
}
