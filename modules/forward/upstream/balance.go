package upstream

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Method is a way to choose the upstream of a session.
type Method uint8

// The methods. All of them go by weights, and choose among the upstreams of one tier.
const (
	RoundRobin   Method = iota // in turn
	LeastConn                  // the one with the fewest living sessions for its weight; of equals in turn
	Random                     // by lot
	RandomChoose               // of some that are drawn by lot, the one with the fewest living sessions for its weight
	First                      // the first in the config
	IPHash                     // by the client's address
	Hash                       // by a value that each session has
)

var methods = [...]string{"round_robin", "least_conn", "random", "random_choose", "first", "ip_hash", "hash"}

func (m Method) String() string { return methods[m] }

// maxDraws bounds the upstreams that RandomChoose draws for a session.
const maxDraws = 64

// Balance says how the upstream of a session is chosen. The zero Balance is round robin.
type Balance struct {
	Method Method
	// Draws is how many upstreams RandomChoose draws.
	Draws int
	// Value is what Hash hashes: text with placeholders.
	Value string
}

// Keyed reports whether sessions need a [Walk.Key].
func (b Balance) Keyed() bool { return b.Method == IPHash || b.Method == Hash }

// ParseBalance reads a method and its value, such as "random_choose 2".
func ParseBalance(s string) (Balance, error) {
	name, value, _ := strings.Cut(s, " ")
	value = strings.TrimSpace(value)
	var b Balance
	for m, known := range methods {
		if name != known {
			continue
		}
		b.Method = Method(m)
		switch {
		case b.Method == RandomChoose:
			n, err := strconv.Atoi(value)
			if err != nil || n < 2 || n > maxDraws {
				return b, fmt.Errorf("%s: %q: expected a whole number from 2 to %d", name, value, maxDraws)
			}
			b.Draws = n
		case b.Method == Hash && !strings.Contains(value, "{"):
			return b, fmt.Errorf("%s: %q: expected a placeholder of the connection, such as {l4.tls.server_name}", name, value)
		case b.Method == Hash:
			b.Value = value
		case value != "":
			return b, fmt.Errorf("%s: %q: expected no value", name, value)
		}
		return b, nil
	}
	last := len(methods) - 1
	return b, fmt.Errorf("%q: expected %s or %s", name, strings.Join(methods[:last], ", "), methods[last])
}

const (
	// MaxWeight is the largest weight of an upstream.
	MaxWeight = 65535
	// MaxPriority is the last tier that an upstream may belong to.
	MaxPriority = 100
)

// CheckTiers refuses upstreams of which none may get a session, and tiers with a gap: a tier without an upstream is a
// typing error.
func CheckTiers(upstreams []Upstream) error {
	var filled [MaxPriority + 1]bool
	last, usable := 0, false
	for i := range upstreams {
		u := &upstreams[i]
		filled[u.Priority] = true
		last = max(last, u.Priority)
		usable = usable || !u.Drained
	}
	if !usable && len(upstreams) > 0 {
		return errors.New("weight: all are 0: expected one upstream at least that may get sessions")
	}
	for tier := range last {
		if !filled[tier] {
			return fmt.Errorf(`priority: "%d": expected an upstream of priority %d, too: tiers are numbered from 0 without a gap`, last, tier)
		}
	}
	return nil
}
