// Package discovery finds out which upstreams there are: it has the sources that name servers are, the form of lists of upstreams, and
// what is kept of a source that fails.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// Source tells which upstreams there are: it pushes answers, whether it is told of changes or has to ask for them.
type Source interface {
	// Run reports to the sink until ctx ends, and returns soon after that. It reports at once, and then whenever something has changed or
	// was found to be as before. It bounds every wait by a timeout and every answer by [MaxEntries]. It is called once for all handlers
	// and configs that have the source, and may outlive the config that made it.
	Run(ctx context.Context, to Sink)
}

// Sink takes what a source reports. Its methods don't wait for other sources; they are called by one goroutine at a time.
type Sink interface {
	// Answer takes a complete answer. The source must not change it afterwards.
	Answer(Answer)
	// Same says that the last answer holds still.
	Same()
	// Failed says that the source could not answer. What it has answered last stays in use for a while.
	Failed(error)
	// Last returns what is known: what the source has answered last, or one before it, also one of an earlier process. It is for a source that
	// can't find all of an answer, and must not be changed.
	Last() []Entry
}

// Maker is what a Caddy module of the namespace layer4.upstreams implements, once it is provisioned.
type Maker interface {
	// Source returns the source that the module's options describe. Handlers share one where their modules have the same JSON.
	Source() (Made, error)
}

// Made is a source and what belongs to it.
type Made struct {
	// Source must not need the module, which goes with its config.
	Source Source
	// Question is what is asked, without how often, of whom, and for how long the answer is used. A source begins with what one with the same
	// question knows, which a reload has replaced, or which has stored it. Empty: only one whose module has the same JSON.
	Question string
	// Whom says who is asked, if that is an option. Of several that are asked the same, what those with the same Whom know comes first.
	Whom string
	// Name is the source in logs and metrics, such as "file /etc/portgate/upstreams". It has no secrets.
	Name string
	// GracePeriod is how long the last good answer is used while the source fails. Zero: [DefaultGracePeriod].
	GracePeriod time.Duration
}

// DefaultGracePeriod is how long the last good answer is used, unless the config says otherwise.
const DefaultGracePeriod = 24 * time.Hour

// MaxEntries bounds an answer. One with more, bad entries included, is not used in part: the source has failed.
const MaxEntries = 65536

func errTooMany() error { return fmt.Errorf("it has more than %d upstreams", MaxEntries) }

// Entry is an upstream as a source knows it.
type Entry struct {
	// Address is where it is: "host:port", both with an optional "tcp/" or "udp/", or "unix//path".
	Address string `json:"address"`
	// Weight is its share of the sessions, up to [upstream.MaxWeight]. Zero: 1.
	Weight int `json:"weight,omitempty"`
	// Drained means that it gets no new sessions.
	Drained bool `json:"drained,omitempty"`
	// MaxConnections is how many sessions it has at once, up to [upstream.MaxSessions]. Zero: no limit.
	MaxConnections int `json:"max_connections,omitempty"`
	// Priority is its tier, up to [upstream.MaxPriority].
	Priority int `json:"priority,omitempty"`
	// Zone is where it is.
	Zone string `json:"zone,omitempty"`
	// Host is the name that the address is one of, where the source has looked it up.
	Host string `json:"host,omitempty"`
}

// Answer is all upstreams that a source knows.
type Answer struct {
	// Entries are valid, and none is there twice.
	Entries []Entry
	// Bad is how many were left out because they make no sense, and First says of the first few why.
	Bad   int
	First []error
}

// maxReported bounds the bad entries that are reported one by one.
const maxReported = 5

func (a *Answer) skip(err error) {
	a.Bad++
	if len(a.First) < maxReported {
		a.First = append(a.First, err)
	}
}

// ErrEmpty is the failure of a source that answers that there are no upstreams: a pool is never emptied by that.
var ErrEmpty = errors.New("the answer has no upstream")

// Collector makes an answer of entries, of which some may make no sense. It takes no more than [MaxEntries].
type Collector struct {
	// Unix allows unix sockets, for sources on this machine.
	Unix bool

	answer  Answer
	seen    map[string]struct{}
	tooMany bool // were to be added
}

// Add takes an entry, or says why not. What it says is counted as a bad entry, with where, if that is not empty, in front.
func (c *Collector) Add(e Entry, where string) {
	if !c.hasRoom() {
		return
	}
	err := c.check(&e)
	if err == nil {
		key := strings.ToLower(e.Address)
		if strings.HasPrefix(key, "unix/") {
			key = e.Address
		}
		if _, twice := c.seen[key]; twice {
			err = fmt.Errorf("%q: given twice", e.Address)
		} else {
			if c.seen == nil {
				c.seen = make(map[string]struct{})
			}
			c.seen[key] = struct{}{}
		}
	}
	if err != nil {
		c.Skip(err, where)
		return
	}
	c.answer.Entries = append(c.answer.Entries, e)
}

// Skip counts an entry that can't even be read.
func (c *Collector) Skip(err error, where string) {
	if !c.hasRoom() {
		return
	}
	if where != "" {
		err = fmt.Errorf("%s: %w", where, err)
	}
	c.answer.skip(err)
}

func (c *Collector) hasRoom() bool {
	if len(c.answer.Entries)+c.answer.Bad >= MaxEntries {
		c.tooMany = true
	}
	return !c.tooMany
}

// TooMany reports whether there were more entries than an answer may have. No further ones are taken then.
func (c *Collector) TooMany() bool { return c.tooMany }

// Answer returns what was collected, or an error where there were too many entries. It is called once.
func (c *Collector) Answer() (Answer, error) {
	if c.tooMany {
		return Answer{}, errTooMany()
	}
	return c.answer, nil
}

func (c *Collector) check(e *Entry) error {
	addr, err := upstream.Parse(e.Address)
	switch {
	case err != nil:
		return shortened(e.Address, err)
	case addr.Network == "unix" && !c.Unix:
		return fmt.Errorf("%q: expected host:port: this source can't name unix sockets", e.Address)
	case addr.Ports() > 1:
		return fmt.Errorf("%q: expected one port", e.Address)
	case addr.Network != "unix" && addr.Host == "":
		return fmt.Errorf("%q: expected a host before the port", e.Address)
	case e.Weight < 0 || e.Weight > upstream.MaxWeight:
		return fmt.Errorf(`%q: weight: "%d": expected a whole number from 0 to %d`, e.Address, e.Weight, upstream.MaxWeight)
	case e.Priority < 0 || e.Priority > upstream.MaxPriority:
		return fmt.Errorf(`%q: priority: "%d": expected a whole number from 0 to %d`, e.Address, e.Priority, upstream.MaxPriority)
	case e.MaxConnections < 0 || e.MaxConnections > upstream.MaxSessions:
		return fmt.Errorf(`%q: max_connections: "%d": expected a whole number from 0 to %d`, e.Address, e.MaxConnections, upstream.MaxSessions)
	case len(e.Zone) > maxZone:
		return fmt.Errorf("%q: zone: %.32q...: expected at most %d characters", e.Address, e.Zone, maxZone)
	}
	return nil
}

// maxZone bounds the name of a zone.
const maxZone = 255

// maxQuoted bounds what is repeated of an entry that is not an address.
const maxQuoted = 128

func shortened(address string, err error) error {
	if len(address) > maxQuoted {
		return fmt.Errorf("%.32q...: expected host:port", address)
	}
	return err
}

// same reports whether two answers have the same upstreams, in whatever order.
func same(a, b []Entry) bool {
	if slices.Equal(a, b) {
		return true
	}
	if len(a) != len(b) {
		return false
	}
	all := make(map[Entry]struct{}, len(a))
	for _, e := range a {
		all[e] = struct{}{}
	}
	for _, e := range b {
		if _, ok := all[e]; !ok {
			return false
		}
	}
	return true
}

// BadError is the failure of a source all of whose entries make no sense.
type BadError struct{ Answer Answer }

// Error says how many there are, and what is wrong with the first one.
func (e *BadError) Error() string {
	return fmt.Sprintf("all %d entries are bad, the first one: %v", e.Answer.Bad, e.Answer.First[0])
}
