package meter

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// goneAfter is how long a series is still shown after nobody holds one of its label values: it was read then by whoever
// reads every quarter of a minute. It bridges the moment of a reload in which only the config of before has a handler.
const goneAfter = 30 * time.Second

// Labels whose values come and go with configs. The values of others, such as status, are words of the code.
var comeAndGo = map[string]bool{"listener": true, "upstream": true, "rule": true, "limit": true, "name": true}

type labelValue struct{ label, value string }

// sweeper removes the series whose label values nobody holds.
type sweeper struct {
	mu      sync.Mutex
	holders map[labelValue]int
	gone    map[labelValue]*departure       // the last one, of values that nobody holds
	forget  map[string][]func(value string) // by label: removes the series with that value
}

// departure is when somebody released values that nobody holds since.
type departure struct{ values []labelValue }

func newSweeper() *sweeper {
	return &sweeper{
		holders: make(map[labelValue]int),
		gone:    make(map[labelValue]*departure),
		forget:  make(map[string][]func(string)),
	}
}

// swept is the sweeper of all metrics of this package.
var swept = newSweeper()

// Forget has f called for a value of a label that nobody has held for half a minute. The metrics of this package need it
// not; it is for what a collector keeps by label value.
func Forget(label string, f func(value string)) { swept.onGone(label, f) }

func (sw *sweeper) onGone(label string, f func(value string)) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	sw.forget[label] = append(sw.forget[label], f)
}

// sweep has the series of vec go with their label values.
func (sw *sweeper) sweep(vec interface{ DeletePartialMatch(prometheus.Labels) int }, labels []string) {
	for _, label := range labels {
		if comeAndGo[label] {
			sw.onGone(label, func(value string) { vec.DeletePartialMatch(prometheus.Labels{label: value}) })
		}
	}
}

func (sw *sweeper) hold(v labelValue) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	sw.holders[v]++
	delete(sw.gone, v)
}

func (sw *sweeper) release(all map[labelValue]struct{}) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	d := new(departure)
	for v := range all {
		if sw.holders[v]--; sw.holders[v] > 0 {
			continue
		}
		delete(sw.holders, v)
		sw.gone[v] = d
		d.values = append(d.values, v)
	}
	if len(d.values) > 0 {
		time.AfterFunc(goneAfter, func() { sw.remove(d) })
	}
}

// remove removes what nobody has held since.
func (sw *sweeper) remove(d *departure) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	for _, v := range d.values {
		if sw.gone[v] != d {
			continue
		}
		delete(sw.gone, v)
		for _, forget := range sw.forget[v.label] {
			forget(v.value)
		}
	}
}

// Values are the label values that somebody uses, such as a handler whose config or sessions live. Their series stay for as
// long as he holds them. A series that is used while nobody holds all of its values may never go, so hold them first. The
// zero value is ready to use.
type Values struct {
	sweeper *sweeper // nil: that of this package

	mu   sync.RWMutex
	held map[labelValue]struct{}
}

// Hold holds values of a label, until Release. What is held already costs a look-up.
func (v *Values) Hold(label string, values ...string) {
	for _, value := range values {
		v.hold(labelValue{label, value})
	}
}

func (v *Values) hold(one labelValue) {
	v.mu.RLock()
	_, held := v.held[one]
	v.mu.RUnlock()
	if held {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, held := v.held[one]; held {
		return
	}
	if v.held == nil {
		v.held = make(map[labelValue]struct{})
	}
	v.held[one] = struct{}{}
	v.of().hold(one)
}

// Release gives back what is held. Values may be held again after it.
func (v *Values) Release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.held) > 0 {
		v.of().release(v.held)
		v.held = nil
	}
}

func (v *Values) of() *sweeper {
	if v.sweeper != nil {
		return v.sweeper
	}
	return swept
}
