package throttle

import (
	"testing"
	"time"
)

// fixedPacer answers the same each time, and notes what it is told.
type fixedPacer struct {
	turn  int
	pause time.Duration
	told  int
}

func (p *fixedPacer) Quantum() int { return p.turn }

func (p *fixedPacer) Moved(n int) time.Duration {
	p.told += n
	return p.pause
}

func TestLimitsOfSeveralHandlersAllHold(t *testing.T) {
	t.Parallel()
	var l Limits
	if l.PaceUp != nil || l.PaceDown != nil || l.AllowUp != nil || l.AllowDown != nil {
		t.Errorf("limits without a handler: %+v", l)
	}
	slow, slower := &fixedPacer{turn: 10, pause: time.Second}, &fixedPacer{turn: 20, pause: time.Minute}
	var asked []string
	allow := func(name string, answer bool) func(int) bool {
		return func(int) bool {
			asked = append(asked, name)
			return answer
		}
	}
	l.Add(Limits{PaceUp: slow, AllowDown: allow("a", true)})
	if l.PaceUp != slow || l.PaceDown != nil {
		t.Errorf("limits of one handler: %+v", l)
	}
	l.Add(Limits{PaceUp: slower, AllowDown: allow("b", false)})
	l.Add(Limits{PaceDown: slow, AllowDown: allow("c", true)})

	up := l.PaceUp
	if got := up.Quantum(); got != 10 {
		t.Errorf("a turn of %d, want the smaller one", got)
	}
	if got := up.Moved(7); got != time.Minute || slow.told != 7 || slower.told != 7 {
		t.Errorf("a pause of %v, %d and %d told", got, slow.told, slower.told)
	}
	if l.PaceDown != slow {
		t.Error("the other direction has another pacer")
	}
	if l.AllowDown(1) || len(asked) != 2 {
		t.Errorf("allowed, or asked: %v", asked)
	}
}
