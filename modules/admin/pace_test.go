package admin

import (
	"testing"
	"testing/synctest"
	"time"
)

// However many walk for somebody who has asked, together they take a tenth of the time. What Portgate itself walks for does not wait for them.
func TestPaceIsShared(t *testing.T) {
	before := walkers.Load()
	if before != 0 {
		t.Fatalf("%d walk already", before)
	}
	synctest.Test(t, func(t *testing.T) {
		walk := func(p *pace) time.Duration {
			p.since = time.Now()
			for range listedBetween - 1 {
				p.step()
			}
			time.Sleep(2 * walkFor)
			start := time.Now()
			p.step()
			return time.Since(start)
		}
		alone := startOfShare()
		if rest := walk(alone); rest != restFor*2*walkFor {
			t.Errorf("alone it rests for %v", rest)
		}
		var others []*pace
		for range 49 {
			others = append(others, startOfShare())
		}
		if rest := walk(alone); rest != 50*restFor*2*walkFor {
			t.Errorf("as one of 50 it rests for %v", rest)
		}
		if rest := walk(startOfPace(listedBetween)); rest != restFor*2*walkFor {
			t.Errorf("one of Portgate's own rests for %v", rest)
		}
		for range 1000 {
			others = append(others, startOfShare())
		}
		if rest := walk(alone); rest != mostSharing*restFor*2*walkFor {
			t.Errorf("as one of very many it rests for %v", rest)
		}
		for _, p := range others {
			p.end()
		}
		if rest := walk(alone); rest != restFor*2*walkFor {
			t.Errorf("alone again it rests for %v", rest)
		}
		alone.end()
	})
}
