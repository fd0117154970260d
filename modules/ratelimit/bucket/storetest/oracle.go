package storetest

import (
	"math/big"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// Spec is a limit in the words of a config, of which the oracle and the store each make their own.
type Spec struct {
	Count    int64 // so many at once; the other fields are then not used
	N        int64
	Per      time.Duration
	Burst    int64
	MaxDelay time.Duration
}

// Limit returns the limit as a store takes it.
func (s Spec) Limit(id uint16) (*bucket.Limit, error) {
	if s.Count > 0 {
		return bucket.NewCount(id, s.Count), nil
	}
	return bucket.NewEvents(id, s.N, s.Per, s.Burst, s.MaxDelay)
}

// Asked is a request to the oracle.
type Asked struct {
	ID  uint16
	Key string
}

// Oracle says what a store with room for everybody has to decide. It keeps no state but the list of what was
// admitted, and goes through all of it for each decision: a bucket has a level, from which events take and
// which rises with time up to its full height.
type Oracle struct {
	Specs    []Spec // by ID
	admitted []arrival
}

type arrival struct {
	at       time.Duration
	asked    Asked
	released bool
}

// Decide decides and remembers. The times must not go back.
func (o *Oracle) Decide(now time.Duration, asked ...Asked) (d bucket.Decision) {
	for i, a := range asked {
		spec := o.Specs[a.ID]
		if spec.Count > 0 {
			if o.count(a) >= spec.Count && !d.Refused {
				d.Refused, d.Limit, d.Delay = true, i, 0
			}
			continue
		}
		after := o.level(now, a) - spec.interval()
		switch {
		case after < -spec.MaxDelay:
			if !d.Refused {
				d.Refused, d.Limit, d.Delay = true, i, 0
			}
			d.Retry = max(d.Retry, -spec.MaxDelay-after)
		case !d.Refused && -after > d.Delay:
			d.Limit, d.Delay = i, -after
		}
	}
	if !d.Refused {
		d.Retry = 0
		for _, a := range asked {
			o.admitted = append(o.admitted, arrival{at: now, asked: a})
		}
	}
	return d
}

// Release gives one back of each that is a count.
func (o *Oracle) Release(asked ...Asked) {
	for _, a := range asked {
		for i := range o.admitted {
			if e := &o.admitted[i]; e.asked == a && !e.released {
				e.released = true
				break
			}
		}
	}
}

func (o *Oracle) count(a Asked) (n int64) {
	for _, e := range o.admitted {
		if e.asked == a && !e.released {
			n++
		}
	}
	return n
}

// level is how much there is in the bucket, in the time that it takes to rise so high.
func (o *Oracle) level(now time.Duration, a Asked) time.Duration {
	spec := o.Specs[a.ID]
	full := time.Duration(spec.Burst) * spec.interval()
	level, last := full, time.Duration(0)
	for _, e := range o.admitted {
		if e.asked == a {
			level = min(full, level+e.at-last) - spec.interval()
			last = e.at
		}
	}
	return min(full, level+now-last)
}

// interval is the time in which the bucket rises by one, rounded up.
func (s Spec) interval() time.Duration {
	quotient, rest := new(big.Int).DivMod(big.NewInt(int64(s.Per)), big.NewInt(s.N), new(big.Int))
	if rest.Sign() > 0 {
		quotient.Add(quotient, big.NewInt(1))
	}
	return time.Duration(quotient.Int64())
}
