package admin

import "time"

// pace has a long walk over sessions give way to those who move their bytes. The scheduler would leave a processor to it for up to 10 ms
// at a time, in which datagrams and messages wait. It walks for a moment, and then rests for longer.
type pace struct {
	steps int
	since time.Time
}

const (
	stepsBetween = 16
	walkFor      = 50 * time.Microsecond
	restFor      = 9 // times as long as it has walked
	longestRest  = time.Millisecond
)

func startOfPace() *pace { return &pace{since: time.Now()} }

// step is called before each session. No lock may be held.
func (p *pace) step() {
	if p.steps++; p.steps%stepsBetween != 0 {
		return
	}
	if walked := time.Since(p.since); walked >= walkFor {
		time.Sleep(min(restFor*walked, longestRest))
		p.since = time.Now()
	}
}
