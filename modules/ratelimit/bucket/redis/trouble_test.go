package redis

import (
	"testing"
	"testing/synctest"
	"time"
)

// Where Redis works now and then, what is wrong is told ever more rarely, but told if it stays; after a while without trouble it is
// told at once again.
func TestTroubleThatComesAndGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tr trouble
		told := 0
		for range 10 * 60 * 2 { // in ten minutes
			if tr.take("slow") {
				told++
			}
			time.Sleep(250 * time.Millisecond)
			tr.end()
			time.Sleep(250 * time.Millisecond)
		}
		if told < 10 || told > 20 {
			t.Errorf("told %d times in ten minutes", told)
		}
		if tr.take("slow") {
			t.Error("told again at once")
		}
		time.Sleep(maxWait)
		if !tr.take("slow") || tr.take("slow") {
			t.Error("not told once while it stays")
		}
		if !tr.take("another") {
			t.Error("another reason is not told")
		}
		tr.end()
		time.Sleep(2 * maxWait)
		for range 2 {
			if !tr.take("slow") {
				t.Error("not told at once after a while")
			}
			tr.end()
			time.Sleep(2 * minWait)
		}
	})
}
