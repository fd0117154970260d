package admin

import (
	"sync/atomic"
	"time"
)

// pace has a long walk over sessions give way to those who move their bytes. The scheduler would leave a processor to it for up to 10 ms
// at a time, in which datagrams and messages wait. It walks for a moment, and then rests for longer.
type pace struct {
	steps, between int
	since          time.Time
	asked          bool // walks for somebody who has asked, and shares with others who have
}

const (
	listedBetween  = 16  // sessions that are listed between two looks at the clock
	countedBetween = 256 // those that are counted, which takes a tenth of a microsecond each; every rest is some system calls
	walkFor        = 50 * time.Microsecond
	restFor        = 9 // times as long as it has walked
	longestRest    = time.Millisecond
	// mostSharing bounds how much longer one rests because others walk too: a list has to get on, however many are asked for.
	mostSharing = 100
)

// walkers is how many paces walk for somebody who has asked.
var walkers atomic.Int64

// startOfPace is for walks of which there is one in the process.
func startOfPace(between int) *pace { return &pace{between: between, since: time.Now()} }

// startOfShare is for walks that anybody may ask for. All of them together take no more than one would: each rests so many times longer. The caller calls end.
func startOfShare() *pace {
	walkers.Add(1)
	return &pace{between: listedBetween, since: time.Now(), asked: true}
}

func (p *pace) end() { walkers.Add(-1) }

// step is called before each session. No lock may be held that a session could wait for.
func (p *pace) step() {
	if p.steps++; p.steps%p.between != 0 {
		return
	}
	if walked := time.Since(p.since); walked >= walkFor {
		time.Sleep(p.rest(walked))
		p.since = time.Now()
	}
}

func (p *pace) rest(walked time.Duration) time.Duration {
	rest := min(restFor*walked, longestRest)
	if p.asked {
		rest *= time.Duration(min(max(walkers.Load(), 1), mostSharing))
	}
	return rest
}
