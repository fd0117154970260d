package ratelimit

import (
	"math"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// Of datagrams, only those of a session that has had its turn are dropped, but one that begins while others are over the limit
// has no turn yet.
func TestDatagramsOfSessionsThatShareABandwidth(t *testing.T) {
	t.Parallel()
	store := bucket.NewMemory(10)
	limit, err := bucket.NewBytes(1, 1000, time.Hour, 1000) // a turn is as much as the burst
	if err != nil {
		t.Fatal(err)
	}
	session := func() *pacer {
		return &pacer{Pacer: bucket.NewPacer(store, bucket.Request{Limit: limit, Key: limit.ForText("client")})}
	}
	refuses := func() bool { return false }
	much, little := session(), session()
	for i, step := range []struct {
		of     *pacer
		size   int
		others func() bool
		want   bool
	}{
		{little, 1, nil, true},
		{much, 600, nil, true},
		{much, 600, nil, true}, // above the burst
		{much, 1, nil, false},
		{little, 100, nil, true},
		{session(), 1, nil, false},
		{little, 1_000_000, refuses, false}, // and is not charged
		{little, 100, nil, true},
		{nil, 1, nil, true},
		{nil, 1, refuses, false},
	} {
		if got := step.of.allow(step.size, step.others); got != step.want {
			t.Errorf("step %d: %t, want %t", i, got, step.want)
		}
	}
}

// Two sessions that send twice the rate each get the same share, and one that sends a twentieth of the rate loses hardly
// anything; together they get what the limit allows.
func TestSharesOfDatagrams(t *testing.T) {
	t.Parallel()
	const rate, lasts = 100_000, 4 * time.Second
	store := bucket.NewMemory(10)
	limit, err := bucket.NewBytes(1, rate, time.Second, rate/10)
	if err != nil {
		t.Fatal(err)
	}
	type sender struct {
		pacer     *pacer
		size      int
		every     time.Duration
		sent, got int
	}
	all := []*sender{{size: 400, every: 2 * time.Millisecond}, {size: 400, every: 2 * time.Millisecond}, {size: 100, every: 20 * time.Millisecond}}
	for _, s := range all {
		s.pacer = &pacer{Pacer: bucket.NewPacer(store, bucket.Request{Limit: limit, Key: limit.ForText("client")})}
	}
	for at := time.Duration(0); at < lasts; at += time.Millisecond {
		for _, s := range all {
			if at%s.every != 0 {
				continue
			}
			s.sent += s.size
			if s.pacer.allowAt(at, s.size, nil) {
				s.got += s.size
			}
		}
	}
	a, b, little := all[0].got, all[1].got, all[2].got
	may := rate * (lasts.Seconds() + .1)
	if sum := float64(a + b + little); math.Abs(sum/may-1) > .03 {
		t.Errorf("%v bytes pass, want %v", sum, may)
	}
	if min(a, b) < max(a, b)*95/100 {
		t.Errorf("%d and %d bytes of sessions that send the same", a, b)
	}
	if little < all[2].sent*9/10 {
		t.Errorf("%d of %d bytes of the one that sends little", little, all[2].sent)
	}
}
