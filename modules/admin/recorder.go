package admin

import (
	"math"
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

const (
	// pointEvery is how far apart the points of the history are.
	pointEvery = 5 * time.Second
	// points are as many as the history has: 15 minutes.
	points = 180
	// freshFor is how long a look at all sessions is good enough for whoever asks next: somebody who asks each second gets a new one.
	freshFor = 900 * time.Millisecond
	// lookFor is how long after somebody has asked there is a look each second, so that rates are of the last 10 seconds to the second.
	lookFor = 15 * time.Second
	// looks are as many as are remembered: those of the rate window and some more.
	looks = 32
)

// recorder looks at all sessions every 5 seconds, and each second while somebody asks. There is one in the process while any config has
// something that shows what it knows. Sessions have no part in it: it reads what they count anyway.
type recorder struct {
	counting
	stop, stopped chan struct{}

	mu       sync.Mutex
	asked    time.Time
	number   int // of the last look
	seen     [looks]look
	lines    map[*session.Line]*[looks]counts // those that have moved anything, by looks
	replaced int
	history  history
}

// counting is where the counts are from.
type counting struct {
	count  func(step func()) (replaced int)
	totals func() session.Totals
	all    func() []*session.Line
}

var ofSessions = counting{session.CountLiving, session.ReadTotals, session.Lines}

// recorders has the one that there is. It outlives the configs, so a reload loses nothing of the history.
var recorders = state.NewPool[struct{}, *recorder]()

// look is what was found at a time.
type look struct {
	at     time.Time
	totals session.Totals
}

func newRecorder(from counting) *recorder {
	r := &recorder{counting: from, stop: make(chan struct{}), stopped: make(chan struct{}), lines: make(map[*session.Line]*[looks]counts)}
	r.look() // nobody else has it yet
	go r.record()
	return r
}

// Destruct ends the goroutine.
func (r *recorder) Destruct() error {
	close(r.stop)
	<-r.stopped
	return nil
}

// current returns the recorder, nil where nothing of any config shows what it knows.
func current() (r *recorder) {
	recorders.Each(func(_ struct{}, found *recorder) bool { r = found; return false })
	return r
}

func (r *recorder) record() {
	defer close(r.stopped)
	timer := time.NewTimer(r.wait())
	defer timer.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-timer.C:
			r.mu.Lock()
			r.look()
			r.mu.Unlock()
			timer.Reset(r.wait())
		}
	}
}

// wait is how long it is until the next look: at a full second, or at one that a point of the history is due at.
func (r *recorder) wait() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, every := time.Now(), pointEvery
	if now.Sub(r.asked) < lookFor {
		every = time.Second
	}
	return now.Truncate(every).Add(every).Sub(now)
}

// fresh has somebody see what is not older than a second. It is called with the lock held.
func (r *recorder) fresh() {
	now := time.Now()
	r.asked = now
	if now.Sub(r.seen[r.number%looks].at) >= freshFor {
		r.look()
	}
}

// look is called with the lock held. Nobody waits for it but those who ask.
func (r *recorder) look() {
	r.replaced = r.count(startOfPace(countedBetween).step)
	now := time.Now() // a walk over many sessions takes a while, in which they go on
	r.number++
	at := r.number % looks
	before := r.seen[(r.number-1)%looks]
	r.seen[at] = look{now, r.counting.totals()}
	here := make(map[*session.Line]struct{}, len(r.lines))
	streams, datagrams := int64(0), int64(0)
	for _, line := range r.all() {
		if living := line.Living.Load(); line.Datagrams() {
			datagrams += living
		} else {
			streams += living
		}
		moved := counts{line.BytesUp.Load(), line.BytesDown.Load()}
		past := r.lines[line]
		if past == nil && moved == (counts{}) {
			continue
		}
		if past == nil {
			past = new([looks]counts)
			r.lines[line] = past
		}
		past[at], here[line] = moved, struct{}{}
	}
	for line := range r.lines {
		if _, is := here[line]; !is {
			delete(r.lines, line) // nobody has it any more
		}
	}
	r.history.note(now, r.seen[at].totals, streams, datagrams, before.at.IsZero())
}

// base returns the number of the look that a rate is taken from: the one that is nearest to 10 seconds old.
func (r *recorder) base() (number int, elapsed time.Duration) {
	newest := r.seen[r.number%looks].at
	nearest := time.Duration(math.MaxInt64)
	for n := r.number - 1; n > 0 && n > r.number-looks; n-- {
		age := newest.Sub(r.seen[n%looks].at)
		if off := (age - rateWindow).Abs(); off < nearest {
			nearest, number, elapsed = off, n, age
		}
	}
	return number, elapsed
}

// rates returns what all sessions have moved and how many there were a second over the last 10 seconds. It is called with the lock held.
func (r *recorder) rates() (rates statusRates) {
	number, elapsed := r.base()
	if number == 0 || elapsed <= 0 {
		return rates
	}
	from, to, seconds := &r.seen[number%looks].totals, &r.seen[r.number%looks].totals, elapsed.Seconds()
	rates.BytesUp = float64(to.BytesUp-from.BytesUp) / seconds
	rates.BytesDown = float64(to.BytesDown-from.BytesDown) / seconds
	rates.Sessions = float64(to.Begun-from.Begun) / seconds
	rates.Refusals = float64(sum(to.Refused)-sum(from.Refused)) / seconds
	return rates
}

// lineRates is rates for the bytes of one line.
func (r *recorder) lineRates(line *session.Line) (up, down float64) {
	number, elapsed := r.base()
	past := r.lines[line]
	if past == nil || number == 0 || elapsed <= 0 {
		return 0, 0
	}
	from, to := past[number%looks], past[r.number%looks]
	return float64(to.up-from.up) / elapsed.Seconds(), float64(to.down-from.down) / elapsed.Seconds()
}

func sum(all map[string]int64) (n int64) {
	for _, one := range all {
		n += one
	}
	return n
}
