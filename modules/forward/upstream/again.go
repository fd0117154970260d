package upstream

import (
	"context"
	"net"
	"slices"
)

// Again begins the walk anew with the upstream that Next gave last, for a session which has it already. The upstream is looked up
// again. The address stays the same where it is still one of the upstream's, and where the look-up fails. After Again, Next goes on with the
// upstream's other addresses, and then with the other upstreams.
func (w *Walk) Again(ctx context.Context) (net.Addr, error) {
	if w.current == nil || w.last == nil {
		return w.Next(ctx, nil)
	}
	w.Renew = true
	addrs, source, err := w.resolve(ctx, w.current)
	if err != nil || len(addrs) == 0 {
		addrs, source = []net.Addr{w.last}, w.source
	}
	same := func(addr net.Addr) bool { return keyOf(addr) == keyOf(w.last) }
	if i := slices.IndexFunc(addrs, same); i >= 0 {
		addrs = slices.Concat(addrs[i:i+1], addrs[:i], addrs[i+1:])
	} else {
		in, out := w.pool.split(addrs)
		addrs = slices.Concat(in, out)
	}
	w.choice = choice{tier: int16(w.current.Priority)}
	w.choice.take(w.current.position)
	w.tried = 1
	w.source, w.addrs = source, addrs
	w.last, w.addrs = addrs[0], addrs[1:] // the session has it already, so no breaker is asked
	return w.last, nil
}
