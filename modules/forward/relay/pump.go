package relay

import (
	"errors"
	"sync/atomic"
	"time"
)

// bulkAfter is how many full buffers in a row make a stream bulk.
const bulkAfter = 2

// pump copies one direction.
type pump struct {
	engine     *goroutines
	src, dst   *end
	fin, reset Reason // of src
	moved      *atomic.Int64
	pacer      Pacer // nil: no bound

	full     int  // full buffers in a row
	noSplice bool // the kernel refused
	reader   reader
}

func (p *pump) init(g *goroutines, src, dst *end, fin, reset Reason) {
	p.engine, p.src, p.dst, p.fin, p.reset = g, src, dst, fin, reset
	p.moved, p.pacer = &g.Relay.down, g.cfg.PaceDown
	if p == &g.up {
		p.moved, p.pacer = &g.Relay.up, g.cfg.PaceUp
	}
	p.reader.init()
}

// writeError tells a failure of the destination from one of the source.
type writeError struct{ error }

// run copies until the source ends and passes on how it did.
func (p *pump) run() {
	err := p.copy()
	var failed writeError
	switch {
	case p.src.closed.Load() || p.dst.closed.Load():
		// Cut, or the other direction has passed a reset on.
	case errors.As(err, &failed):
		// The other direction delivers what the destination has sent before it went; then it
		// finds the same end, and finish resets the source.
		p.dst.gone.Store(true)
		p.engine.because(p.other().reset)
	case isFIN(err) && !p.src.wasReset():
		p.engine.fin(p.fin)
		p.dst.closeWrite()
	default:
		p.src.gone.Store(true)
		p.engine.because(p.reset)
		p.dst.drain(p.engine.isCut)
		p.dst.reset()
	}
}

func (p *pump) other() *pump {
	if p == &p.engine.up {
		return &p.engine.down
	}
	return &p.engine.up
}

// copy returns nil at the source's FIN, a writeError or the source's error.
func (p *pump) copy() error {
	p.sent(0)
	if p == &p.engine.up {
		if err := p.write(p.engine.cfg.Prefetched); err != nil {
			return err
		}
		p.engine.cfg.Prefetched = nil
	}
	if p.src.raw == nil || !readsRaw {
		return p.copyWrapped()
	}
	return p.copyRaw()
}

func (p *pump) write(b []byte) error {
	for len(b) > 0 {
		n, err := p.dst.conn.Write(b[:p.turn(len(b))])
		p.sent(n)
		if err != nil {
			return writeError{err}
		}
		b = b[n:]
	}
	return nil
}

// turn is how much may be moved at once, of most.
func (p *pump) turn(most int) int {
	if p.pacer == nil {
		return most
	}
	return min(most, p.pacer.Turn())
}

// sent notes that the destination has taken n bytes, and waits until there may be more.
func (p *pump) sent(n int) {
	if n > 0 {
		p.moved.Add(int64(n))
		p.engine.touch(p.engine.age())
	}
	if p.pacer == nil {
		return
	}
	pause := p.pacer.Moved(n)
	if pause <= 0 {
		return
	}
	p.engine.touch(p.engine.age() + pause) // it is not the peers that are silent
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.engine.ctx.Done():
	}
}

// copyWrapped serves sources that can only be read as a net.Conn, with a buffer for as long as they live.
func (p *pump) copyWrapped() error {
	buf := borrow()
	defer giveBack(buf)
	for {
		n, err := p.src.conn.Read(buf[:])
		if werr := p.write(buf[:n]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
	}
}

// copyRaw waits without a buffer, and leaves bulk to splice.
func (p *pump) copyRaw() error {
	for {
		buf, n, err := p.reader.read(p.src.raw)
		if err != nil || n == 0 {
			return err
		}
		err = p.write(buf[:n])
		giveBack(buf)
		if err != nil {
			return err
		}
		if n < bufferSize {
			p.full = 0
			continue
		}
		if p.full++; p.full < bulkAfter || p.noSplice || p.dst.raw == nil {
			continue
		}
		p.full = 0
		if err := p.splice(); err != nil {
			return err
		}
	}
}
