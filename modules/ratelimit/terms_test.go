package ratelimit

import (
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
