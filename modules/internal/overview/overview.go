// Package overview is how modules tell the admin API what only they know: what is forwarded where, and how the event loops fare.
package overview

import (
	"time"
)

// Mapping is what is forwarded from one listen address.
type Mapping struct {
	Network  string   // as sessions have it
	Listener string   // as sessions have it; of a range of ports that of the first one
	Ports    uint     // how many ports follow from it on
	Address  string   // the listen address as configured, without its network
	Handler  string   // such as "forward"
	Upstream []string // where sessions go: as configured, or as discovered
}

// What modules tell. It does not change once the process has begun.
var (
	mappings []func() []Mapping
	lags     []func() time.Duration
)

// TellMappings has f asked for what is forwarded now. It is to be called by an init function.
func TellMappings(f func() []Mapping) { mappings = append(mappings, f) }

// Mappings returns what is forwarded now.
func Mappings() (all []Mapping) {
	for _, f := range mappings {
		all = append(all, f()...)
	}
	return all
}

// TellLag has f asked for the longest time lately that an event loop took for a turn, in which other sessions of it waited. It is to be called
// by an init function.
func TellLag(f func() time.Duration) { lags = append(lags, f) }

// Lag returns the longest of these times. It reports false where there are no event loops.
func Lag() (longest time.Duration, ok bool) {
	for _, f := range lags {
		longest, ok = max(longest, f()), true
	}
	return longest, ok
}
