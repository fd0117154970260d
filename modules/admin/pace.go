package admin

import "time"

// pace has a long walk over sessions give way to those who move their bytes. The scheduler would leave a processor to it for up to 10 ms
// at a time, in which datagrams and messages wait. It walks for a moment, and then rests for longer.
type pace struct {
	steps, between int
	since          time.Time
}

const (
	listedBetween  = 16  // sessions that are listed between two looks at the clock
	countedBetween = 256 // those that are counted, which takes a tenth of a microsecond each; every rest is some system calls
	walkFor        = 50 * time.Microsecond
	restFor        = 9 // times as long as it has walked
	longestRest    = time.Millisecond
)

func startOfPace(between int) *pace { return &pace{between: between, since: time.Now()} }

// step is called before each session. No lock may be held.
func (p *pace) step() {
	if p.steps++; p.steps%p.between != 0 {
		return
	}
	if walked := time.Since(p.since); walked >= walkFor {
		time.Sleep(min(restFor*walked, longestRest))
		p.since = time.Now()
	}
}
