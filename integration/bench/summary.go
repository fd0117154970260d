package main

import (
	"math"
	"slices"
)

// Spread is the median of some rounds with its neighbours at the ends.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// Summary is one cell of a table: one target's rounds of a workload, seen by one metric.
type Summary struct {
	Workload string `json:"workload"`
	Metric   string `json:"metric"`
	Unit     string `json:"unit"`
	Target   string `json:"target"`
	Spread

	// Ratios are taken within each round, between runs that followed each other closely, and then summed up.
	ToHAProxy *Spread `json:"to_haproxy,omitempty"`
	ToBetter  *Spread `json:"to_better,omitempty"` // to the better of HAProxy and nginx
	ToItself  *Spread `json:"to_itself,omitempty"` // of a variant of Portgate, to Portgate
}

// metric is one of the tables.
type metric struct {
	name   string
	more   bool // more is better
	unit   func(kind) string
	value  func(workload, Round) float64 // NaN where there is none
	direct bool                          // there is a value without a proxy as well
}

// shows says whether the target has a column.
func (m metric) shows(target string) bool {
	return !slices.Contains(variants, target) && (target != direct || m.direct)
}

const (
	gib      = 1 << 30
	lostName = "Datagrams lost"
)

func metrics() []metric {
	return []metric{
		{"CPU of the proxy", false, perUnit, func(w workload, r Round) float64 { return cost(w, r, r.ProxyCPU) }, false},
		{"Throughput", true, rateUnit, rate, true},
		{"CPU of the whole machine", false, perUnit, func(w workload, r Round) float64 { return cost(w, r, r.MachineCPU) }, true},
		{"Duration, median", false, inMicroseconds, durationOf(func(r Round) float64 { return r.P50 }), true},
		{"Duration, 99th percentile", false, inMicroseconds, durationOf(func(r Round) float64 { return r.P99 }), true},
		{"Duration, 99.9th percentile", false, inMicroseconds, durationOf(func(r Round) float64 { return r.P999 }), true},
		{lostName, false, func(kind) string { return "%" }, loss, true},
		{"Memory", false, func(kind) string { return "KiB each" }, memory, false},
	}
}

func isBulk(k kind) bool { return k == bulkUp || k == bulkDown }

func perUnit(k kind) string {
	if isBulk(k) {
		return "s/GiB"
	}
	return "µs each"
}

func rateUnit(k kind) string {
	if isBulk(k) {
		return "Gbit/s"
	}
	return "/s"
}

func inMicroseconds(kind) string { return "µs" }

func cost(w workload, r Round, cpu float64) float64 {
	switch {
	case w.kind == idle:
		return math.NaN()
	case isBulk(w.kind):
		return cpu / (float64(r.Bytes) / gib)
	default:
		return cpu * 1e6 / float64(r.Operations)
	}
}

func rate(w workload, r Round) float64 {
	switch {
	case w.kind == idle:
		return math.NaN()
	case isBulk(w.kind):
		return float64(r.Bytes) * 8 / 1e9 / r.Seconds
	default:
		return float64(r.Operations) / r.Seconds
	}
}

func durationOf(quantile func(Round) float64) func(workload, Round) float64 {
	return func(w workload, r Round) float64 {
		if !w.kind.timed() {
			return math.NaN()
		}
		return quantile(r)
	}
}

func loss(w workload, r Round) float64 {
	if w.network != udp || w.kind == idle {
		return math.NaN()
	}
	return 100 * float64(r.Lost) / float64(r.Sent)
}

func memory(w workload, r Round) float64 {
	if w.kind != idle {
		return math.NaN()
	}
	return float64(r.ResidentAfter-r.ResidentBefore) / float64(r.Connections)
}

// summarize turns rounds into cells.
func summarize(rounds []Round, work []workload, targets []string) []Summary {
	var all []Summary
	for _, m := range metrics() {
		for _, w := range work {
			values := make(map[string][]float64) // by target; one for each round
			for _, target := range targets {
				values[target] = pick(rounds, m, w, target)
			}
			better := betterPeer(values, m.more)
			for _, target := range targets {
				if target == direct && !m.direct {
					continue
				}
				spread := spreadOf(values[target])
				if spread == nil {
					continue
				}
				s := Summary{Workload: w.name, Metric: m.name, Unit: m.unit(w.kind), Target: target, Spread: *spread}
				if target != direct {
					s.ToHAProxy = ratio(values[target], values[haproxy])
					s.ToBetter = ratio(values[target], values[better])
				}
				if slices.Contains(variants, target) {
					s.ToItself = ratio(values[target], values[portgate])
				}
				all = append(all, s)
			}
		}
	}
	return all
}

// pick returns what the metric says of each round, NaN where a round has failed.
func pick(rounds []Round, m metric, w workload, target string) []float64 {
	var values []float64
	for _, r := range rounds {
		if r.Workload != w.name || r.Target != target {
			continue
		}
		value := m.value(w, r)
		if r.Error != "" || math.IsInf(value, 0) {
			value = math.NaN()
		}
		values = append(values, value)
	}
	return values
}

// betterPeer returns which of HAProxy and nginx has the better median, or which has one at all.
func betterPeer(values map[string][]float64, more bool) string {
	a, b := spreadOf(values[haproxy]), spreadOf(values[nginx])
	if a == nil || b != nil && (b.Median > a.Median) == more {
		return nginx
	}
	return haproxy
}

// ratio compares two targets round by round.
func ratio(values, others []float64) *Spread {
	var ratios []float64
	for i := range min(len(values), len(others)) {
		ratios = append(ratios, values[i]/others[i])
	}
	return spreadOf(ratios)
}

// spreadOf ignores what is not a number, and returns nil if nothing is.
func spreadOf(values []float64) *Spread {
	sorted := slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	if len(sorted) == 0 {
		return nil
	}
	slices.Sort(sorted)
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return &Spread{median, sorted[0], sorted[len(sorted)-1]}
}
