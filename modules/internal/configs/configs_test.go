package configs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/portgate/caddy-portgate/modules/internal/events"
)

const timeout = 30 * time.Second

func TestMain(m *testing.M) {
	caddy.RegisterModule(new(app))
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// app is an app that may refuse to be provisioned, or to start.
type app struct {
	Provisioning string `json:"provisioning,omitempty"`
	Starting     string `json:"starting,omitempty"`
}

func (*app) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "test_app", New: func() caddy.Module { return new(app) }}
}

func (a *app) Provision(ctx caddy.Context) error {
	Watch(ctx)
	Watch(ctx) // there may be thousands of handlers
	if a.Provisioning != "" {
		return errors.New(a.Provisioning)
	}
	return nil
}

func (a *app) Start() error {
	if a.Starting != "" {
		return errors.New(a.Starting)
	}
	return nil
}

func (*app) Stop() error { return nil }

func load(options string) error {
	return caddy.Load([]byte(`{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
		"apps": {"test_app": {`+options+`}}}`), true)
}

// mustBe waits until so many more configs than before have fared so, and returns what is known then.
func (before Reloads) mustBe(t *testing.T, success, failure int64) (now Reloads) {
	t.Helper()
	success, failure = success+before.Success, failure+before.Failure
	for deadline := time.Now().Add(timeout); ; time.Sleep(time.Millisecond) {
		if now = Now(); now.Success == success && now.Failure == failure {
			return now
		}
		if time.Now().After(deadline) || now.Success > success || now.Failure > failure {
			t.Fatalf("%+v, want %d and %d", now, success, failure)
		}
	}
}

// named returns the events of these names that came after one, as text.
func named(after uint64) (all []string) {
	some, _, _, _ := events.Since(after)
	for _, e := range some {
		if e.Name == events.Reload || e.Name == events.ConfigRejected {
			text := e.Name
			if err, is := e.Data["error"]; is {
				text += ": " + err.(string)
			}
			all = append(all, text)
		}
	}
	return all
}

func TestReloads(t *testing.T) {
	_, _, last, _ := events.Since(0)
	base := Now()
	if !base.Loaded.IsZero() {
		t.Errorf("before the first config: %+v", base)
	}
	if load(`"provisioning": "at first"`) == nil {
		t.Fatal("was loaded")
	}
	if now := base.mustBe(t, 0, 1); !now.Loaded.IsZero() || !strings.Contains(now.LastError, "at first") {
		t.Errorf("%+v", now)
	}
	before := time.Now().Add(-time.Second)
	if err := load(""); err != nil {
		t.Fatal(err)
	}
	first := base.mustBe(t, 0, 1) // no reload
	if first.Loaded.Before(before) || time.Since(first.Loaded) < -time.Second {
		t.Errorf("loaded at %s", first.Loaded)
	}
	if err := load(""); err != nil {
		t.Fatal(err)
	}
	second := base.mustBe(t, 1, 1)
	if second.LastError != "" || !second.Loaded.After(first.Loaded) {
		t.Errorf("%+v, after %+v", second, first)
	}
	for i, options := range []string{`"provisioning": "upstream http://user:secret@host refused"`, `"starting": "` + strings.Repeat("x", 2*maxError) + `"`} {
		if load(options) == nil {
			t.Fatal("was loaded")
		}
		base.mustBe(t, 1, int64(i+2))
	}
	if now := base.mustBe(t, 1, 3); len(now.LastError) != maxError+3 || !now.Loaded.Equal(second.Loaded) {
		t.Errorf("%+v, after %+v", now, second)
	}
	_, cancel := caddy.NewContext(caddy.ActiveContext()) // what somebody makes within a config is none
	cancel()
	for range 100 {
		if err := load(""); err != nil {
			t.Fatal(err)
		}
	}
	base.mustBe(t, 101, 3)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if now := base.mustBe(t, 101, 3); !now.Loaded.IsZero() { // a stop is no reload
		t.Errorf("%+v", now)
	}
	var all []string
	for deadline := time.Now().Add(timeout); len(all) != 104 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		all = named(last)
	}
	if len(all) != 104 || !strings.HasSuffix(all[0], "at first") || all[1] != events.Reload {
		t.Errorf("%d events: %q", len(all), all[:min(len(all), 2)])
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if len(known.watched) > 0 {
		t.Errorf("%d configs are watched", len(known.watched))
	}
	if text := strings.Join(all, "\n"); strings.Contains(text, "secret") || !strings.Contains(text, "http://***@host refused") {
		t.Error("an event has a password")
	}
}

// A config that is only checked is neither loaded nor rejected.
func TestValidation(t *testing.T) {
	before := Now()
	if err := caddy.Validate(&caddy.Config{AppsRaw: caddy.ModuleMap{"test_app": []byte(`{}`)}}); err != nil {
		t.Fatal(err)
	}
	before.mustBe(t, 0, 0)
}

func TestMetrics(t *testing.T) {
	if err := load(""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = caddy.Stop() }()
	registry := prometheus.NewPedanticRegistry()
	if err := Register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				if label.GetName() == "result" {
					name += " " + label.GetValue()
				}
				if label.GetValue() == "" {
					t.Errorf("%s: %s is empty", name, label.GetName())
				}
			}
			got[name] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	now := Now()
	if got["caddy_portgate_build_info"] != 1 || got["caddy_portgate_config_reloads_total success"] != float64(now.Success) ||
		got["caddy_portgate_config_reloads_total failure"] != float64(now.Failure) ||
		got["caddy_portgate_config_last_success_timestamp"] != float64(now.Loaded.UnixMilli())/1000 || len(got) != 4 {
		t.Errorf("%v, want %+v", got, now)
	}
}

// Configs that end in short order may be seen in another one.
func TestLateRejection(t *testing.T) {
	t.Parallel()
	c := &configs{watched: map[<-chan struct{}]uint64{make(chan struct{}): 7}}
	if c.rejected(6, errors.New("an old one")); c.reloads.LastError != "" || c.reloads.Failure != 1 {
		t.Errorf("%+v", c.reloads)
	}
	if c.rejected(8, errors.New("the last one")); c.reloads.LastError != "the last one" || c.reloads.Failure != 2 {
		t.Errorf("%+v", c.reloads)
	}
}
