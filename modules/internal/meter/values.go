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

const (
	// together is for how long values are released that are removed at the same time: a list of upstreams has thousands, which go one by one.
	together = time.Second
	// maxGone bounds the values that nobody holds, as where a name server has others each second: those of the longest standing are removed
	// early. It is twice the number of upstreams that a list may have.
	maxGone = 2 * 65536
	// removedAtOnce bounds the values that are removed without letting those who hold values have the lock.
	removedAtOnce = 256
)

// Labels whose values come and go with configs. The values of others, such as status, are words of the code.
var comeAndGo = map[string]bool{"listener": true, "upstream": true, "rule": true, "limit": true, "name": true}

type labelValue struct{ label, value string }

// sweeper removes the series whose label values nobody holds.
type sweeper struct {
	mu         sync.Mutex
	holders    map[labelValue]int
	gone       map[labelValue]*departure       // the last one, of values that nobody holds
	departures map[*departure]struct{}         // whose values are still to be removed
	latest     *departure                      // nil where there is none
	forget     map[string][]func(value string) // by label: forgets what is kept of that value
	vectors    []vector
}

// departure is values that were released at about the same time, and that nobody holds since.
type departure struct {
	at      time.Time // when the first one was
	values  map[labelValue]struct{}
	timer   *time.Timer // calls remove
	hurried bool        // it is to be removed now
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

// hold does nothing for the empty value. It says that there is none, such as the upstream of a session that was refused, and the series of all
// listeners have it.
func (sw *sweeper) hold(v labelValue) {
	if v.value == "" {
		return
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	sw.holders[v]++
	delete(sw.gone, v)
}

func (sw *sweeper) release(all map[labelValue]struct{}) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	for v := range all {
		if v.value == "" {
			continue
		}
		if sw.holders[v]--; sw.holders[v] > 0 {
			continue
		}
		delete(sw.holders, v)
		d := sw.departing()
		sw.gone[v] = d
		d.values[v] = struct{}{}
	}
	if len(sw.gone) > maxGone {
		sw.hurry()
	}
}

// departing returns the departure of what is released now. It needs mu.
func (sw *sweeper) departing() *departure {
	if d := sw.latest; d != nil {
		if age := time.Since(d.at); age >= 0 && age < together { // negative where a test has a clock of its own
			return d
		}
	}
	d := &departure{at: time.Now(), values: make(map[labelValue]struct{})}
	d.timer = time.AfterFunc(goneAfter+together, func() { sw.remove(d) })
	sw.departures[d] = struct{}{}
	sw.latest = d
	return d
}

// hurry has the oldest departure removed now. It needs mu.
func (sw *sweeper) hurry() {
	var oldest *departure
	for d := range sw.departures {
		if oldest == nil || d.at.Before(oldest.at) {
			oldest = d
		}
	}
	if oldest == nil || oldest.hurried {
		return
	}
	oldest.hurried = true
	oldest.timer.Reset(0)
	if sw.latest == oldest {
		sw.latest = nil
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
	found := make(map[labelValue][]series)
	for _, vec := range vectors {
		findSeries(found, vec, due) // without the lock, which whoever begins a session may need
	}
	n := 0
	sw.mu.Lock()
	defer sw.mu.Unlock()
	for v, d := range due {
		if n++; n%removedAtOnce == 0 {
			sw.mu.Unlock()
			sw.mu.Lock()
		}
		if sw.gone[v] != d {
			continue // is held again
		}
		delete(sw.gone, v)
		for _, forget := range sw.forget[v.label] {
			forget(v.value)
		}
		for _, one := range found[v] {
			one.of.Delete(one.labels)
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
		if d != with && time.Since(d.at) < goneAfter+together {
			continue
		}
		delete(sw.departures, d)
		for v := range d.values {
			if sw.gone[v] == d {
				values[v] = d
			}
		}
	}
	return values
}

// series is one of a vector.
type series struct {
	of     vector
	labels prometheus.Labels
}

// findSeries adds the series of a vector that have any of the values.
func findSeries(found map[labelValue][]series, vec vector, values map[labelValue]*departure) {
	all := make(chan prometheus.Metric)
	go func() {
		defer close(all)
		vec.Collect(all)
	}()
	for one := range all {
		var written dto.Metric
		if one.Write(&written) != nil {
			continue
		}
		var labels prometheus.Labels
		for _, pair := range written.Label {
			v := labelValue{pair.GetName(), pair.GetValue()}
			if _, has := values[v]; !has {
				continue
			}
			if labels == nil {
				labels = labelsOf(&written)
			}
			found[v] = append(found[v], series{vec, labels})
		}
	}
}

func labelsOf(written *dto.Metric) prometheus.Labels {
	labels := make(prometheus.Labels, len(written.Label))
	for _, pair := range written.Label {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
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
