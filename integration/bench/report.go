package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Report is the JSON file.
type Report struct {
	Machine   Machine   `json:"machine"`
	Settings  Settings  `json:"settings"`
	Targets   []string  `json:"targets"`
	Workloads []string  `json:"workloads"`
	Summary   []Summary `json:"summary"`
	Rounds    []Round   `json:"rounds"`
	Sweep     []Round   `json:"sweep,omitempty"`
	Seconds   float64   `json:"seconds"` // for everything
}

// Settings say how long was measured.
type Settings struct {
	Began       time.Time `json:"began"`
	Rounds      int       `json:"rounds"`
	Seconds     float64   `json:"seconds"`
	Warmup      float64   `json:"warmup_seconds"`
	SweepRounds int       `json:"sweep_rounds"`
	SweepTime   float64   `json:"sweep_seconds"`
	Loops       int       `json:"loops"` // threads of the generator, and of the backend
}

func newReport(b *bench, work []workload) *Report {
	r := &Report{
		Machine: describeMachine(b.programs, b.targets),
		Settings: Settings{
			Began: time.Now().UTC().Truncate(time.Second), Rounds: b.rounds, Seconds: b.duration.Seconds(), Warmup: b.warmup.Seconds(),
			SweepRounds: b.sweepRounds, SweepTime: b.sweepDuration.Seconds(), Loops: b.loops(),
		},
	}
	for _, t := range b.targets {
		r.Targets = append(r.Targets, t.name)
	}
	for _, w := range work {
		r.Workloads = append(r.Workloads, w.name)
	}
	return r
}

// markdown is what goes to stdout and into docs/performance.md.
func (r *Report) markdown() string {
	var text strings.Builder
	r.describe(&text)
	for _, m := range metrics() {
		r.table(&text, m)
	}
	for _, variant := range variants {
		r.variantTable(&text, variant)
	}
	r.remarks(&text)
	return text.String()
}

func (r *Report) describe(text *strings.Builder) {
	m := r.Machine
	fmt.Fprintf(text, "Measured on %s: %d CPUs (%s), %d GiB, %s. Rounds: %d of %v s each, after %v s of warm-up. Threads of the client: %d, of the backend: %[9]d.\n\n",
		r.Settings.Began.Format(time.DateOnly), m.CPUs, m.Model, (m.MemoryMiB+512)/1024, m.Kernel,
		r.Settings.Rounds, r.Settings.Seconds, r.Settings.Warmup, r.Settings.Loops)
	for _, t := range r.Targets {
		if t != direct && !slices.Contains(variants, t) {
			fmt.Fprintf(text, "- %s: %s\n", t, m.Versions[t])
		}
	}
	fmt.Fprintf(text, "- Portgate and caddy-l4 are one binary, built with %s\n\n", m.Go)
}

// table writes one metric, if there is anything to show.
func (r *Report) table(text *strings.Builder, m metric) {
	rows := make(map[string]map[string]Summary) // workload, target
	for _, s := range r.Summary {
		if s.Metric == m.name {
			if rows[s.Workload] == nil {
				rows[s.Workload] = make(map[string]Summary)
			}
			rows[s.Workload][s.Target] = s
		}
	}
	if len(rows) == 0 {
		return
	}
	better := "less"
	if m.more {
		better = "more"
	}
	fmt.Fprintf(text, "### %s: %s is better\n\n| work | unit |", m.name, better)
	rule := "|---|---|"
	for _, t := range r.Targets {
		if m.shows(t) {
			fmt.Fprintf(text, " %s |", t)
			rule += "---|"
		}
	}
	fmt.Fprintf(text, " Portgate / HAProxy | Portgate / the better |\n%s---|---|\n", rule)
	for _, w := range r.Workloads {
		if row := rows[w]; row != nil {
			r.row(text, m, w, row)
		}
	}
	text.WriteString("\n")
}

func (r *Report) row(text *strings.Builder, m metric, workload string, row map[string]Summary) {
	unit := ""
	for _, s := range row {
		unit = s.Unit
	}
	fmt.Fprintf(text, "| %s | %s |", workload, unit)
	for _, t := range r.Targets {
		switch s, ok := row[t]; {
		case !m.shows(t):
		case !ok && r.ran(workload, t):
			text.WriteString(" failed |")
		case !ok:
			text.WriteString(" – |")
		default:
			fmt.Fprintf(text, " %s |", s.Spread)
		}
	}
	fmt.Fprintf(text, " %s | %s |\n", asRatio(row[portgate].ToHAProxy), asRatio(row[portgate].ToBetter))
}

func asRatio(s *Spread) string {
	if s == nil {
		return "–"
	}
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", s.Median, s.Min, s.Max)
}

// variantTable compares Portgate that has more options with Portgate that has not.
func (r *Report) variantTable(text *strings.Builder, variant string) {
	rows := ""
	for _, with := range r.Summary {
		without := slices.IndexFunc(r.Summary, func(s Summary) bool {
			return s.Workload == with.Workload && s.Metric == with.Metric && s.Target == portgate
		})
		if with.Target == variant && without >= 0 {
			rows += fmt.Sprintf("| %s: %s | %s | %s | %s | %s |\n",
				with.Workload, with.Metric, with.Unit, r.Summary[without].Spread, with.Spread, asRatio(with.ToItself))
		}
	}
	if rows != "" {
		fmt.Fprintf(text, "### %s\n\n| work | unit | without | with | with / without |\n|---|---|---|---|---|\n%s\n", variant, rows)
	}
}

// ran says whether the target was measured with the workload at all.
func (r *Report) ran(workload, target string) bool {
	return slices.ContainsFunc(r.Rounds, func(round Round) bool { return round.Workload == workload && round.Target == target })
}

// remarks say what the tables don't: what failed, and how quiet the machine was.
func (r *Report) remarks(text *strings.Builder) {
	failed := make(map[string]string)
	var others []float64
	for _, round := range append(r.Rounds[:len(r.Rounds):len(r.Rounds)], r.Sweep...) {
		what := ""
		if round.Error != "" {
			what = round.Error
		} else if round.Failures > 0 {
			what = fmt.Sprintf("%d connections or sessions failed in a round", round.Failures)
		}
		if what != "" {
			failed[fmt.Sprintf("%s, %s", round.Target, round.Workload)] = what
		}
		if round.Seconds > 0 {
			rest := round.MachineCPU - round.ProxyCPU - round.GeneratorCPU - round.BackendCPU
			others = append(others, 100*rest/round.Seconds/float64(r.Machine.CPUs))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(failed)) {
		fmt.Fprintf(text, "- %s: %s\n", key, failed[key])
	}
	if s := spreadOf(others); s != nil {
		fmt.Fprintf(text, "While this was measured, %.1f %% of the machine (median of all rounds, %.1f %% at most) went to neither proxy, client nor backend, "+
			"but to kernel threads and whatever else was running.\n", max(0, s.Median), max(0, s.Max))
	}
}

// String is the form in the tables.
func (s Spread) String() string {
	if s.Min == s.Max {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Min), number(s.Max))
}

// number writes three significant digits.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	decimals := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	if decimals >= 0 {
		return strconv.FormatFloat(v, 'f', decimals, 64)
	}
	unit := math.Pow10(-decimals)
	return whole(math.Round(v/unit) * unit)
}

// whole writes a number without decimals, with commas between the thousands.
func whole(v float64) string {
	digits := strconv.FormatFloat(v, 'f', 0, 64)
	for at := len(digits) - 3; at > 0 && digits[at-1] != '-'; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}

// The tables in a file are between these two lines.
const (
	markBegin = "<!-- bench: begin -->"
	markEnd   = "<!-- bench: end -->"
)

func replaceTables(path, tables string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(data), markBegin)
	_, after, ok2 := strings.Cut(rest, markEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s: expected the lines %q and %q", path, markBegin, markEnd)
	}
	return os.WriteFile(path, []byte(before+markBegin+"\n\n"+tables+"\n"+markEnd+after), 0o644)
}
