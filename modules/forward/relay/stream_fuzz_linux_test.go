package relay

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// player is one of the two ends that a script is played on, and keeps the books of what it has done.
type player struct {
	conn *net.TCPConn
	raw  syscall.RawConn

	source  *rand.ChaCha8
	next    []byte // of source, to be written
	written int64
	in      *inflow

	finished bool  // has sent a FIN
	broken   bool  // a write has failed, and so taken the error that a read would find
	gone     bool  // has reset the connection
	arrived  int64 // of written, certainly with the relay when it did
	err      error // what reading ended with
}

func newPlayer(conn stream, sends, gets byte) *player {
	tcp := conn.(*net.TCPConn)
	raw, err := tcp.SyscallConn()
	if err != nil {
		panic(err)
	}
	return &player{
		conn: tcp, raw: raw,
		source: rand.NewChaCha8([32]byte{sends}), in: receiver(tcp, gets),
	}
}

// take returns the next n bytes to be written.
func (p *player) take(n int) []byte {
	if missing := n - len(p.next); missing > 0 {
		more := make([]byte, missing)
		_, _ = p.source.Read(more)
		p.next = append(p.next, more...)
	}
	return p.next[:n]
}

// wrote notes that the first n bytes of what was taken are on their way.
func (p *player) wrote(n int) {
	p.next = p.next[n:]
	p.written += int64(n)
}

// write writes what the socket takes of the next n bytes.
func (p *player) write(n int) {
	if p.finished || p.broken || p.gone {
		return
	}
	var err error
	_ = p.raw.Control(func(fd uintptr) {
		var m int
		if m, err = unix.Write(int(fd), p.take(n)); m > 0 {
			p.wrote(m)
		}
	})
	p.broken = err != nil && err != unix.EAGAIN
}

// read reads up to n bytes of what there is.
func (p *player) read(n int64) {
	if p.err != nil || p.gone {
		return
	}
	before := p.in.got
	p.in.from = p
	if err := p.in.read(n); err != errNothing {
		p.err = err
	}
	if p.in.got == before && p.err == nil {
		time.Sleep(100 * time.Microsecond) // there may be something later
	}
}

var errNothing = errors.New("nothing to read")

// Read does not wait.
func (p *player) Read(b []byte) (n int, err error) {
	_ = p.raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) })
	switch {
	case err == unix.EAGAIN:
		return 0, errNothing
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (p *player) finish() {
	if !p.finished && !p.gone {
		p.finished = true
		p.conn.CloseWrite()
	}
}

func (p *player) reset() {
	if p.gone {
		return
	}
	p.gone = true
	p.arrived = p.written - int64(queued(p.raw))
	_ = p.conn.SetLinger(0)
	p.conn.Close()
}

// play does what one byte of a script says.
func (p *player) play(code byte) {
	n := []int{1, 10, 100, 1000, 4 << 10, 16 << 10, 64 << 10, 100_000, 128 << 10, 300_000, 1 << 20, 2 << 20}[code>>4%12]
	switch code % 8 {
	case 0, 1:
		p.write(n)
	case 2, 3:
		p.read(int64(n))
	case 4:
		p.read(1 << 40)
	case 5:
		p.finish()
	case 6:
		time.Sleep(time.Duration(code>>4) * 100 * time.Microsecond)
	case 7:
		if code>>4 < 4 { // seldom
			p.reset()
		}
	}
}

// playScript plays on a relay: the first byte is how much was prefetched, every other one is for one side.
func playScript(t *testing.T, p pair, script []byte) {
	prefetched := []int{0, 0, 1, 1000, 100_000, 2 << 20}[script[0]%6]
	first := bytesOf(1, prefetched)
	s := p.open(t, func(c *Config) { c.Prefetched = first })
	// An upstream that resets before the relay knows that it is connected could not be reached.
	eventually(t, "connection", func() bool { return s.relay.lastActive.Load() > 0 })
	client, upstream := newPlayer(s.client, 1, 2), newPlayer(s.upstream, 2, 1)
	client.take(prefetched)
	client.wrote(prefetched)
	for _, code := range script[1:] {
		if code&8 == 0 {
			client.play(code)
		} else {
			upstream.play(code)
		}
	}
	var both sync.WaitGroup
	for _, p := range []*player{client, upstream} {
		p.finish()
		both.Go(func() {
			p.in.from = p.conn
			if p.err == nil && !p.gone {
				p.err = p.in.read(1 << 40)
			}
		})
	}
	both.Wait()
	r := s.result()
	for _, err := range []error{
		client.check(upstream), upstream.check(client), checkResult(r, client, upstream),
	} {
		if err != nil {
			t.Errorf("%s: %v: client %v, upstream %v, result %+v", p.name, err, client, upstream, r)
		}
	}
}

func (p *player) String() string {
	return fmt.Sprintf("{written %d, of which %d arrived, finished %t, broken %t, gone %t, got %d, %v}",
		p.written, p.arrived, p.finished, p.broken, p.gone, p.in.got, p.err)
}

// check compares what p has got with what its peer had done. All that was sent before a FIN must have arrived, and
// then the FIN; before a reset, all that was with the relay by then, and then the reset.
func (p *player) check(peer *player) error {
	switch {
	case p.gone:
		return nil
	case p.in.got > peer.written:
		return fmt.Errorf("got more than was sent")
	case p.err == io.EOF && p.in.got == peer.written && peer.finished:
		return nil
	case !peer.gone:
		return fmt.Errorf("not all has arrived in order")
	case p.in.got < peer.arrived:
		return fmt.Errorf("what was received before the reset has not arrived")
	case p.broken && p.err == io.EOF, errors.Is(p.err, syscall.ECONNRESET):
		return nil
	}
	return fmt.Errorf("the reset was not passed on")
}

func checkResult(r Result, client, upstream *player) error {
	possible := map[Reason]bool{
		ClientFIN:     client.finished && upstream.finished,
		UpstreamFIN:   client.finished && upstream.finished,
		ClientReset:   client.gone,
		UpstreamReset: upstream.gone,
	}
	switch {
	case !possible[r.Reason]:
		return fmt.Errorf("not a possible reason")
	case r.Err != nil:
		return fmt.Errorf("an error")
	case r.BytesUp > client.written || r.BytesDown > upstream.written,
		!upstream.gone && r.BytesUp < upstream.in.got,
		!client.gone && r.BytesDown < client.in.got,
		r.Spliced > r.BytesUp+r.BytesDown:
		return fmt.Errorf("not a possible count")
	}
	return nil
}

func FuzzSchedule(f *testing.F) {
	for seed := range byte(24) {
		f.Add(bytesOf(seed, 4+int(seed)))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 || len(script) > 100 {
			t.Skip("empty or too long")
		}
		for _, p := range engines {
			playScript(t, p, script)
		}
	})
}
