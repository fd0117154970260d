package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHistogramAgreesWithSorting compares quantiles with those of the sorted durations: never below, and less than 1 % above.
func TestHistogramAgreesWithSorting(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, most := range []time.Duration{1, 100, 300, time.Microsecond, time.Millisecond, time.Minute} {
		h, other := new(histogram), new(histogram)
		var sorted []time.Duration
		for n := range 10_000 {
			d := time.Duration(random.Int64N(int64(most) + 1))
			sorted = append(sorted, d)
			if n%3 == 0 {
				other.record(d)
			} else {
				h.record(d)
			}
		}
		h.add(other)
		slices.Sort(sorted)
		for _, q := range []float64{0, .5, .99, .999, 1} {
			want := sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
			if got := h.quantile(q); got < want || float64(got) > float64(want)*1.01 {
				t.Errorf("up to %v, quantile %v: got %v, want %v", most, q, got, want)
			}
		}
	}
}

// TestHistogramTakesAnyDuration holds that nothing that a clock may say is out of range.
func TestHistogramTakesAnyDuration(t *testing.T) {
	t.Parallel()
	h := new(histogram)
	for _, d := range []time.Duration{-1, 0, 1<<63 - 1} {
		h.record(d)
	}
	if got := h.quantile(1); got != 1<<63-1 {
		t.Errorf("the longest: got %v", got)
	}
	if got := new(histogram).quantile(.5); got != 0 {
		t.Errorf("median of nothing: got %v, want 0", got)
	}
}
