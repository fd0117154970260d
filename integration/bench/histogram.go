package main

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are less than 1 % wide: exact below 128 ns, then 128 buckets
// for each power of two, the layout of HdrHistogram. Recording is one increment, and takes no memory.
type histogram struct {
	counts [powers * buckets]uint32
	total  uint64
	max    time.Duration
}

const (
	bucketBits = 7
	buckets    = 1 << bucketBits
	powers     = 36 // up to 2^42 ns, more than an hour
)

func (h *histogram) record(d time.Duration) {
	h.counts[bucket(d)]++
	h.total++
	h.max = max(h.max, d)
}

// add takes over what another histogram has.
func (h *histogram) add(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

// quantile returns the duration that the share q of all was not longer than, rounded up to its bucket's end.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for i, n := range h.counts {
		seen += uint64(n)
		if n > 0 && seen > rank {
			return min(bucketEnd(i), h.max)
		}
	}
	return h.max
}

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-1-bucketBits, 0)
	if v >= buckets {
		shift++ // the leading bit is in the number of the power, not of the bucket
		v = v >> (shift - 1) & (buckets - 1)
	}
	return min(shift*buckets+int(v), powers*buckets-1)
}

// bucketEnd is the longest duration of a bucket.
func bucketEnd(i int) time.Duration {
	power, rest := i/buckets, i%buckets
	if power == 0 {
		return time.Duration(rest)
	}
	return time.Duration((buckets+rest+1)<<(power-1) - 1)
}
