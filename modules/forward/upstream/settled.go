package upstream

// Settled reports whether the first upstream is all that was chosen, and has one address, which needs no look-up. Then a new walk that
// does Resume at its Position goes on as this one does, so that a session which has its upstream need not keep the walk.
func (w *Walk) Settled() bool {
	return w.current != nil && w.current.fixed != nil && w.last != nil && w.choice.seen == 1 && w.tried == 1 &&
		len(w.addrs) == 0 && w.choice.detour == nil && !w.Renew
}

// Resume sets a walk that has just begun to where a settled one was.
func (w *Walk) Resume(position int) {
	w.current, w.tried = &w.pool.upstreams[position], 1
	w.choice = choice{tier: int16(w.current.Priority)}
	w.choice.take(position)
	w.last = w.current.at(w.situation())[0]
}
