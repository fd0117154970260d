package relay

import "slices"

// writeFirst writes what the upstream gets first: the preface and what was prefetched, or what the client has sent by now.
func (p *pump) writeFirst() error {
	cfg := p.engine.cfg
	preface, b := cfg.Preface, cfg.Prefetched
	cfg.Preface, cfg.Prefetched = nil, nil
	if len(preface) == 0 {
		return p.write(b)
	}
	if len(b) == 0 && p.src.raw != nil {
		buf, n := readNow(p.src.raw)
		if buf != nil {
			defer giveBack(buf)
			b = buf[:n]
		}
	}
	first := p.allowance(len(b))
	n, err := p.dst.conn.Write(slices.Concat(preface, b[:first]))
	p.sent(max(n-len(preface), 0))
	if err != nil {
		return writeError{err}
	}
	return p.write(b[first:])
}
