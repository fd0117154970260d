package relay

import (
	"errors"
	"sync/atomic"
	"time"
)

// bulkAfter is after how many full buffers in a row splice is tried.
const bulkAfter = 2

// pump copies one direction.
type pump struct {
	engine     *goroutineStream
	src, dst   *end
	fin, reset Reason // of src
	moved      *atomic.Int64
	pacer      Pacer // nil: no limit

	full     int  // full buffers in a row
	noSplice bool // the kernel can't splice the source
	reader   reader
}

func (p *pump) init(g *goroutineStream, src, dst *end, fin, reset Reason) {
	p.engine, p.src, p.dst, p.fin, p.reset = g, src, dst, fin, reset
	p.moved, p.pacer = &g.Relay.down, g.cfg.PaceDown
	if p == &g.up {
		p.moved, p.pacer = &g.Relay.up, g.cfg.PaceUp
	}
	p.reader.init()
}

// writeError marks an error of the destination, as opposed to one of the source.
type writeError struct{ error }

// run copies until the source ends, and passes its end on: a FIN as a FIN, a reset as a reset.
func (p *pump) run() {
	err := p.copy()
	var failed writeError
	switch {
	case p.src.closed.Load() || p.dst.closed.Load():
		// Cut, or the other direction has passed a reset on.
	case errors.As(err, &failed):
		// The destination was reset. The other direction still delivers what the destination had sent before;
		// then it sees the same reset, and finish resets the source.
		p.dst.gone.Store(true)
		p.engine.setReason(p.other().reset)
	case isFIN(err) && !p.src.wasReset():
		p.engine.fin(p.fin)
		p.dst.closeWrite()
	default:
		p.src.gone.Store(true)
		p.engine.setReason(p.reset)
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

// copy returns nil at the source's FIN, else a writeError or the source's error.
func (p *pump) copy() error {
	p.sent(0)
	if p == &p.engine.up {
		if err := p.writeFirst(); err != nil {
			return err
		}
	}
	if p.src.raw == nil || !readsRaw {
		return p.copyWrapped()
	}
	return p.copyRaw()
}

func (p *pump) write(b []byte) error {
	for len(b) > 0 {
		n, err := p.dst.conn.Write(b[:p.allowance(len(b))])
		p.sent(n)
		if err != nil {
			return writeError{err}
		}
		b = b[n:]
	}
	return nil
}

// allowance is how many bytes may be moved at once, at most most.
func (p *pump) allowance(most int) int {
	if p.pacer == nil {
		return most
	}
	return min(most, p.pacer.Quantum())
}

// sent notes that the destination has taken n bytes, and pauses where the pacer asks for it.
func (p *pump) sent(n int) {
	if n > 0 {
		p.moved.Add(int64(n))
		p.engine.touch(p.engine.age())
		if p.engine.first.awaited() && p == &p.engine.up {
			p.engine.schedule() // a byte may be late from now on
		}
	}
	if p.pacer == nil {
		return
	}
	pause := p.pacer.Moved(n)
	if pause <= 0 {
		return
	}
	p.engine.touch(later(p.engine.age(), pause)) // the pause is ours: it does not count as silence of the peers
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.engine.ctx.Done():
	}
}

// came notes that the source has sent n bytes.
func (p *pump) came(n int) {
	if n > 0 && p.engine.first.awaited() && p == &p.engine.down {
		p.engine.first.tell(p.engine.age(), "")
	}
}

// copyWrapped copies from a source that can only be read as a net.Conn. It holds a buffer all the time.
func (p *pump) copyWrapped() error {
	buf := borrow()
	defer giveBack(buf)
	for {
		n, err := p.src.conn.Read(buf[:])
		p.came(n)
		if werr := p.write(buf[:n]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
	}
}

// copyRaw copies from a socket. It holds a buffer only while there is something to move, and uses splice for bulk.
func (p *pump) copyRaw() error {
	for {
		buf, n, err := p.reader.read(p.src.raw)
		if err != nil || n == 0 {
			return err
		}
		p.came(n)
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
