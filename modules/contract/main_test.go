package contract

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/goleak"

	_ "github.com/portgate/caddy-portgate"
	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func TestMain(m *testing.M) {
	code := m.Run()
	// The event loops stay, once there are some.
	err := goleak.Find(goleak.IgnoreAnyFunction("github.com/portgate/caddy-portgate/modules/forward/relay.(*loop).run"))
	if err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func init() {
	caddy.RegisterModule(new(probe))
	caddy.RegisterModule(new(memory))
}

// probe is the first handler of every route. It calls the next one, and counts by which entrance a connection has come. Unless it is a step,
// the connection has to come through layer4's chain.
type probe struct {
	Step bool `json:"step"`
}

// entered counts the connections that have come by each entrance.
var entered struct{ fast, chain atomic.Int64 }

func (*probe) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_probe", New: func() caddy.Module { return new(probe) }}
}

func (p *probe) Provision(ctx caddy.Context) error {
	if p.Step {
		fastpath.Offer(ctx, placement.Find(ctx, "test_probe", `{"step":true}`), p)
	}
	return nil
}

func (*probe) Handle(cx *layer4.Connection, next layer4.Handler) error {
	entered.chain.Add(1)
	return next.Handle(cx)
}

func (*probe) Serve(*session.Arrival) (next bool) {
	entered.fast.Add(1)
	return true
}

type object map[string]any

// load makes Caddy run a config with this server; nil for one without.
func load(t *testing.T, server object) {
	t.Helper()
	apps := object{}
	if server != nil {
		apps["layer4"] = object{"servers": object{"contract": server}}
	}
	config, err := json.Marshal(object{
		"admin":   object{"disabled": true, "config": object{"persist": false}},
		"storage": object{"module": "file_system", "root": t.TempDir()},
		"logging": object{"logs": object{
			"default":  object{"writer": object{"output": "discard"}},
			"sessions": object{"include": []string{"layer4.log.access"}, "writer": object{"output": "test_memory"}, "encoder": object{"format": "json"}},
		}},
		"apps": apps,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
}

// ofTheProcess are metrics that say how the process fares, and nothing of its sessions.
var ofTheProcess = []string{"caddy_portgate_config_last_success_timestamp", "caddy_portgate_descriptors_used", "caddy_portgate_event_loop_lag_seconds"}

// metrics returns the samples of the running config whose values are not 0, by name and labels. Of a histogram it is the number of
// observations: how long something took is no part of the contract.
func metrics(t *testing.T) map[string]float64 {
	t.Helper()
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples := make(map[string]float64)
	for _, family := range families {
		if slices.Contains(ofTheProcess, family.GetName()) {
			continue
		}
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += fmt.Sprintf(" %s=%q", label.GetName(), label.GetValue())
			}
			value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
			if value != 0 {
				samples[name] = value
			}
		}
	}
	return samples
}

// entry is an entry of the access log, without what differs from run to run.
type entry struct {
	Network       string
	Listener      string
	ClientIP      string `json:"client_ip"`
	ClientPort    int    `json:"client_port"`
	Upstream      string
	BytesUp       int64 `json:"bytes_up"`
	BytesDown     int64 `json:"bytes_down"`
	DatagramsUp   int64 `json:"datagrams_up"`
	DatagramsDown int64 `json:"datagrams_down"`
	Status        int
	Reason        string
	Rule          string
	Skipped       int
	Error         string
}

// memory is the writer of the access log, which keeps it.
type memory struct{}

var accessLog struct {
	mu      sync.Mutex
	entries []entry
}

func (*memory) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.test_memory", New: func() caddy.Module { return new(memory) }}
}

func (*memory) String() string                        { return "memory" }
func (*memory) WriterKey() string                     { return "memory" }
func (m *memory) OpenWriter() (io.WriteCloser, error) { return m, nil }
func (*memory) Close() error                          { return nil }

func (*memory) Write(b []byte) (int, error) {
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		panic(err)
	}
	accessLog.mu.Lock()
	defer accessLog.mu.Unlock()
	accessLog.entries = append(accessLog.entries, e)
	return len(b), nil
}
