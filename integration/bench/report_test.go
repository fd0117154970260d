package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	for _, test := range []struct {
		values []float64
		want   Spread
	}{
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{3, 1, 2}, Spread{2, 1, 3}},
		{[]float64{4, 1, 2, 3}, Spread{2.5, 1, 4}},
		{[]float64{nan, 1, math.Inf(1), 3, 2}, Spread{2, 1, 3}},
	} {
		if got := spreadOf(test.values); got == nil || *got != test.want {
			t.Errorf("%v: got %v, want %v", test.values, got, test.want)
		}
	}
	if got := spreadOf([]float64{nan}); got != nil {
		t.Errorf("no numbers: got %v, want none", got)
	}
}

// TestRatiosAreTakenWithinRounds: a machine that slows down between two rounds must not show up in a ratio.
func TestRatiosAreTakenWithinRounds(t *testing.T) {
	t.Parallel()
	w := workload{"work", tcp, exchanges, 1}
	var rounds []Round
	for n, slowness := range []float64{1, 4, 2} {
		for target, cpu := range map[string]float64{portgate: 10, haproxy: 20, nginx: 12} {
			rounds = append(rounds, Round{
				Round: n + 1, Workload: w.name, Target: target, Seconds: 1,
				Operations: 1_000_000, ProxyCPU: cpu * slowness,
			})
		}
	}
	for _, s := range summarize(rounds, []workload{w}, []string{portgate, haproxy, nginx}) {
		if s.Target != portgate || s.Metric != metrics()[0].name {
			continue
		}
		if want := (Spread{20, 10, 40}); s.Spread != want {
			t.Errorf("spread: got %v, want %v", s.Spread, want)
		}
		if want := (Spread{.5, .5, .5}); *s.ToHAProxy != want {
			t.Errorf("to HAProxy: got %v, want %v", *s.ToHAProxy, want)
		}
		if want := 10.0 / 12; s.ToBetter.Median != want {
			t.Errorf("to the better: got %v, want %v", s.ToBetter.Median, want)
		}
	}
}

func TestBetterPeer(t *testing.T) {
	t.Parallel()
	values := map[string][]float64{haproxy: {1, 2, 3}, nginx: {2, 3, 4}}
	if got := betterPeer(values, true); got != nginx {
		t.Errorf("more is better: got %s, want %s", got, nginx)
	}
	if got := betterPeer(values, false); got != haproxy {
		t.Errorf("less is better: got %s, want %s", got, haproxy)
	}
	delete(values, haproxy)
	if got := betterPeer(values, false); got != nginx {
		t.Errorf("only one of them: got %s, want %s", got, nginx)
	}
}

// TestWhoDoesNoUDP: HAProxy has dashes, and Portgate is compared with nginx.
func TestWhoDoesNoUDP(t *testing.T) {
	t.Parallel()
	r := Report{
		Targets: []string{portgate, haproxy, nginx, caddyL4}, Workloads: []string{"work"},
		Rounds: []Round{
			{Workload: "work", Target: portgate, Seconds: 1, Operations: 1_000_000, ProxyCPU: 3, Sent: 1_250_000, Lost: 250_000},
			{Workload: "work", Target: nginx, Seconds: 1, Operations: 1_000_000, ProxyCPU: 4, Sent: 1_000_000},
			{Workload: "work", Target: caddyL4, Error: "broken"},
		},
	}
	r.Summary = summarize(r.Rounds, []workload{{"work", udp, flood, 1}}, r.Targets)
	text := r.markdown()
	for _, want := range []string{
		"| work | µs each | 3.00 | – | 4.00 | failed | – | **0.75** (0.75–0.75) |",
		"| work | /s | 1,000,000 | – | 1,000,000 | failed | – | **1.00** (1.00–1.00) |",
		"| work | % | 20.0 | – | 0 | failed | – | – |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the tables have no line %q:\n%s", want, text)
		}
	}
}

// TestLimitIsComparedWithItself: Portgate with a bandwidth limit has a table of its own, and no column.
func TestLimitIsComparedWithItself(t *testing.T) {
	t.Parallel()
	r := Report{Targets: []string{portgate, capped, haproxy}, Workloads: []string{"work"}}
	for n, slowness := range []float64{1, 4, 2} {
		for target, cpu := range map[string]float64{portgate: 2, capped: 3, haproxy: 4} {
			r.Rounds = append(r.Rounds, Round{Round: n + 1, Workload: "work", Target: target, Seconds: 1, Bytes: gib, ProxyCPU: cpu * slowness})
		}
	}
	r.Summary = summarize(r.Rounds, []workload{{"work", tcp, bulkUp, 1}}, r.Targets)
	text := r.markdown()
	for _, want := range []string{
		"| work | s/GiB | 4.00 (2.00–8.00) | 8.00 (4.00–16.0) | **0.50** (0.50–0.50) | **0.50** (0.50–0.50) |",
		"| work: CPU of the proxy | s/GiB | 4.00 (2.00–8.00) | 6.00 (3.00–12.0) | **1.50** (1.50–1.50) |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the tables have no line %q:\n%s", want, text)
		}
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for value, want := range map[float64]string{
		0: "0", 0.001234: "0.00123", 0.5: "0.500", 1.005: "1.00", 12.34: "12.3", 123.4: "123",
		1234: "1,230", 61_250: "61,300", 1_234_567: "1,230,000", -1234: "-1,230",
	} {
		if got := number(value); got != want {
			t.Errorf("%v: got %q, want %q", value, got, want)
		}
	}
}

func TestTablesAreReplacedBetweenTheMarkers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "page.md")
	for _, old := range []string{"", "\nold tables\n"} {
		if err := os.WriteFile(path, []byte("before\n"+markBegin+old+markEnd+"\nafter\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := replaceTables(path, "tables\n"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if want := "before\n" + markBegin + "\n\ntables\n\n" + markEnd + "\nafter\n"; err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if err := os.WriteFile(path, []byte("no markers"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceTables(path, "tables"); err == nil || !strings.Contains(err.Error(), markBegin) {
		t.Errorf("without markers: got %v, want an error that names them", err)
	}
}
