package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// fill adds n events of a name.
func (l *log) fill(name string, n int) {
	for range n {
		l.add(New(name, Info, "something"))
	}
}

func numbers(some []*Event) (all []uint64) {
	for _, e := range some {
		all = append(all, e.Number)
	}
	return all
}

func TestReaderGoesOnWhereHeWas(t *testing.T) {
	t.Parallel()
	var l log
	some, lost, last, more := l.since(0)
	if len(some) != 0 || lost != 0 || last != 0 {
		t.Errorf("of none: %v, %d lost, %d", some, lost, last)
	}
	l.fill(Ban, 3)
	select {
	case <-more:
	default:
		t.Fatal("nobody was told of events")
	}
	if some, lost, last, _ = l.since(last); fmt.Sprint(numbers(some)) != "[1 2 3]" || lost != 0 || last != 3 {
		t.Errorf("%v, %d lost, %d", numbers(some), lost, last)
	}
	if some, _, last, more = l.since(2); fmt.Sprint(numbers(some)) != "[3]" || last != 3 {
		t.Errorf("behind 2: %v, %d", numbers(some), last)
	}
	if some, lost, last, _ = l.since(math.MaxUint64); len(some) != 0 || lost != 0 || last != 3 {
		t.Errorf("of the future: %v, %d lost, %d", numbers(some), lost, last)
	}
	select {
	case <-more:
		t.Error("told of nothing")
	default:
	}
}

// Of each name so many are kept; the others are lost for somebody who has not read them, and he learns how many.
func TestKeptEventsAreBounded(t *testing.T) {
	t.Parallel()
	var l log
	l.fill(UpstreamDown, 1)
	l.fill(Ban, 10*keptOfAName)
	l.fill(UpstreamUp, 1)
	some, lost, last, _ := l.since(0)
	if len(some) != keptOfAName+2 || lost != 9*keptOfAName || last != 10*keptOfAName+2 {
		t.Errorf("%d events, %d lost, the last is %d", len(some), lost, last)
	}
	if some[0].Name != UpstreamDown || some[len(some)-1].Name != UpstreamUp || some[1].Number != 9*keptOfAName+2 {
		t.Errorf("from %s and %d to %s", some[0].Name, some[1].Number, some[len(some)-1].Name)
	}
	if _, lost, _, _ := l.since(9*keptOfAName + 1); lost != 0 {
		t.Errorf("%d lost for a reader who has the others", lost)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	e := New(Ban, Info, "x")
	e.Number = 77
	if n, ok := Number(e.ID()); n != 77 || !ok {
		t.Errorf("%q: %d, %v", e.ID(), n, ok)
	}
	for _, id := range []string{"", "77", "-77", epoch, epoch + "-", epoch + "-x", epoch + "--1", "x" + e.ID(), "00000000-77x"} {
		if n, ok := Number(id); ok {
			t.Errorf("%q: %d", id, n)
		}
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	e := New(UpstreamDown, Warn, "it is down",
		zap.Duration("for", 1500*time.Millisecond), zap.Error(fmt.Errorf("dial: %w", errors.New("refused"))), zap.Int("fails", 3), zap.Skip(),
		zap.String("name", "a name"), zap.String("level", "a level"), zap.Stringers("all", []time.Duration{1, 2}))
	var got map[string]any
	if err := json.Unmarshal(e.JSON, &got); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339Nano, got["time"].(string))
	if err != nil || time.Since(at) < 0 || time.Since(at) > time.Hour || !strings.HasSuffix(got["time"].(string), "Z") {
		t.Errorf("time: %v", got["time"])
	}
	delete(got, "time")
	want := `{"all":["1ns","2ns"],"error":"dial: refused","fails":3,"for":1.5,"level":"warn","message":"it is down","name":"upstream_down",` +
		`"subject_level":"a level","subject_name":"a name"}`
	if text, _ := json.Marshal(got); string(text) != want {
		t.Errorf("%s, want %s", text, want)
	}
	if bad := New(Ban, Info, "x", zap.Float64("n", math.NaN())); !json.Valid(bad.JSON) || bad.Data["error"] == nil {
		t.Errorf("%s", bad.JSON)
	}
}

// Report is a line in the log and an event.
func TestReport(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	for level, want := range map[Level]string{Info: "info", Warn: "warn", Error: "error"} {
		_, _, last, _ := Since(0)
		Report(zap.New(core, zap.AddCaller()), UpstreamSet, level, "test of "+want, zap.String("upstream", "a"))
		lines := logs.FilterMessage("test of " + want).All()
		if len(lines) != 1 || lines[0].Level.String() != want || lines[0].ContextMap()["upstream"] != "a" || !strings.Contains(lines[0].Caller.File, "events_test") {
			t.Errorf("%v", lines)
		}
		some, _, _, _ := Since(last)
		found := false
		for _, e := range some {
			found = found || e.Data["message"] == "test of "+want && e.Data["level"] == level && e.Data["upstream"] == "a"
		}
		if !found {
			t.Errorf("no event at %s", level)
		}
	}
}
