package meter

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// goneAfter is how long a series is still shown after nobody holds one of its label values: it was read then by whoever
// reads every quarter of a minute. It bridges the moment of a reload in which only the config of before has a handler.
const goneAfter = 30 * time.Second

// Labels whose values come and go with configs. The values of others, such as status, are words of the code.
var comeAndGo = map[string]bool{"listener": true, "upstream": true, "rule": true, "limit": true, "name": true}

type labelValue struct{ label, value string }

// sweeper removes the series whose label values nobody holds.
type sweeper struct {
	mu         sync.Mutex
	holders    map[labelValue]int
	gone       map[labelValue]*departure       // the last one, of values that nobody holds
	departures map[*departure]struct{}         // whose values are still to be removed
	forget     map[string][]func(value string) // by label: forgets what is kept of that value
	vectors    []vector
}

// departure is when somebody released values that nobody holds since.
type departure struct {
	at     time.Time
	values []labelValue
}

// vector is metrics of which there is one for each combination of label values.
type vector interface {
	prometheus.Collector
	Delete(prometheus.Labels) bool
}

func newSweeper() *sweeper {
	return &sweeper{
		holders: make(map[labelValue]int),
		gone:    make(map[labelValue]*departure),
		forget:  make(map[string][]func(string)),

		departures: make(map[*departure]struct{}),
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
func (sw *sweeper) sweep(vec vector, labels []string) {
	if slices.ContainsFunc(labels, func(label string) bool { return comeAndGo[label] }) {
		sw.mu.Lock()
		defer sw.mu.Unlock()
		sw.vectors = append(sw.vectors, vec)
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
	d := &departure{at: time.Now()}
	for v := range all {
		if sw.holders[v]--; sw.holders[v] > 0 {
			continue
		}
		delete(sw.holders, v)
		sw.gone[v] = d
		d.values = append(d.values, v)
	}
	if len(d.values) > 0 {
		sw.departures[d] = struct{}{}
		time.AfterFunc(goneAfter, func() { sw.remove(d) })
	}
}

// remove removes what nobody has held since a departure, together with all else that is due: thousands of handlers or listeners that go
// together have thousands of values, and there may be as many series to go through.
func (sw *sweeper) remove(d *departure) {
	due := sw.due(d)
	if len(due) == 0 {
		return // it was removed together with others
	}
	sw.mu.Lock()
	vectors := sw.vectors
	sw.mu.Unlock()
	found := make([][]prometheus.Labels, len(vectors))
	for i, vec := range vectors {
		found[i] = seriesOf(vec, due) // without the lock, which whoever begins a session may need
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	for v, d := range due {
		if sw.gone[v] != d {
			delete(due, v) // is held again
			continue
		}
		delete(sw.gone, v)
		for _, forget := range sw.forget[v.label] {
			forget(v.value)
		}
	}
	for i, vec := range vectors {
		for _, labels := range found[i] {
			if hasAny(labels, due) {
				vec.Delete(labels)
			}
		}
	}
}

// due returns the values that are to be removed now: those of the departure and of all others that are as old.
func (sw *sweeper) due(with *departure) map[labelValue]*departure {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if _, left := sw.departures[with]; !left {
		return nil
	}
	values := make(map[labelValue]*departure)
	for d := range sw.departures {
		if d != with && time.Since(d.at) < goneAfter {
			continue
		}
		delete(sw.departures, d)
		for _, v := range d.values {
			if sw.gone[v] == d {
				values[v] = d
			}
		}
	}
	return values
}

// seriesOf returns the labels of the series that have any of the values.
func seriesOf(vec vector, values map[labelValue]*departure) (found []prometheus.Labels) {
	series := make(chan prometheus.Metric)
	go func() {
		defer close(series)
		vec.Collect(series)
	}()
	for one := range series {
		var written dto.Metric
		if one.Write(&written) != nil {
			continue
		}
		labels := make(prometheus.Labels, len(written.Label))
		for _, pair := range written.Label {
			labels[pair.GetName()] = pair.GetValue()
		}
		if hasAny(labels, values) {
			found = append(found, labels)
		}
	}
	return found
}

func hasAny(labels prometheus.Labels, values map[labelValue]*departure) bool {
	for label, value := range labels {
		if _, has := values[labelValue{label, value}]; has {
			return true
		}
	}
	return false
}

// Hold holds one value of a label, until Release. It is for whoever counts by himself what needs the series; see [Values] for a set of them.
func Hold(label, value string) { swept.hold(labelValue{label, value}) }

// Release is called once for each Hold.
func Release(label, value string) { swept.release(map[labelValue]struct{}{{label, value}: {}}) }

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
