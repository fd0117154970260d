package admin

import (
	"encoding/json"
	"net/http"
	"runtime"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/configs"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/overview"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

const statusPath = "/portgate/status"

// started is when the process began, as far as this package knows.
var started = time.Now()

// status is how the process fares. Times are in seconds, rates per second.
type status struct {
	Version      string           `json:"version"`
	CaddyVersion string           `json:"caddy_version"`
	GoVersion    string           `json:"go_version"`
	Started      time.Time        `json:"started"`
	Uptime       float64          `json:"uptime"`
	Config       statusConfig     `json:"config"`
	Sessions     statusSessions   `json:"sessions"`
	Rates        statusRates      `json:"rates"`    // over the last 10 seconds
	Refusals     map[string]int64 `json:"refusals"` // by reason, since the process began
	Descriptors  statusCounts     `json:"descriptors"`
	EventLoopLag *float64         `json:"event_loop_lag,omitempty"` // the longest turn of an event loop lately; absent where there are none
	LogDropped   int64            `json:"log_entries_dropped"`
	Degraded     []statusDegraded `json:"degraded"`
}

type statusConfig struct {
	Loaded    *time.Time    `json:"loaded,omitempty"`
	Reloads   statusReloads `json:"reloads"`
	LastError string        `json:"last_error,omitempty"` // of the last config, where it was rejected
}

type statusReloads struct {
	Success int64 `json:"success"`
	Failure int64 `json:"failure"`
}

type statusSessions struct {
	TCP      int64 `json:"tcp"` // with unix sockets
	UDP      int64 `json:"udp"`
	Replaced int   `json:"replaced"` // whose config is no longer the running one
}

type statusRates struct {
	BytesUp   float64 `json:"bytes_up"`
	BytesDown float64 `json:"bytes_down"`
	Sessions  float64 `json:"sessions"`
	Refusals  float64 `json:"refusals"`
}

type statusCounts struct {
	Used  *int `json:"used,omitempty"` // absent where the system does not tell
	Limit int  `json:"limit"`
}

type statusDegraded struct {
	What   string         `json:"what"`
	Reason string         `json:"reason"`
	Since  time.Time      `json:"since"`
	Fields map[string]any `json:"fields,omitempty"` // as in the log entry
}

// readStatus returns how the process fares now.
func readStatus() (s status) {
	reloads, now := configs.Now(), time.Now()
	s = status{
		Version: configs.Version(), CaddyVersion: configs.CaddyVersion(), GoVersion: runtime.Version(),
		Started: started.UTC(), Uptime: now.Sub(started).Seconds(),
		Config:      statusConfig{Reloads: statusReloads{reloads.Success, reloads.Failure}, LastError: reloads.LastError},
		Refusals:    session.ReadTotals().Refused,
		Descriptors: statusCounts{Limit: descriptors.Limit()},
		LogDropped:  logqueue.Dropped(),
		Degraded:    readDegraded(),
	}
	if !reloads.Loaded.IsZero() {
		loaded := reloads.Loaded.UTC()
		s.Config.Loaded = &loaded
	}
	for _, line := range session.Lines() {
		if living := line.Living.Load(); line.Datagrams() {
			s.Sessions.UDP += living
		} else {
			s.Sessions.TCP += living
		}
	}
	if open, ok := descriptors.Open(); ok {
		s.Descriptors.Used = &open
	}
	if lag, ok := overview.Lag(); ok {
		seconds := lag.Seconds()
		s.EventLoopLag = &seconds
	}
	if r := current(); r != nil {
		r.mu.Lock()
		r.fresh()
		s.Rates, s.Sessions.Replaced = r.rates(), r.replaced
		r.mu.Unlock()
	}
	return s
}

func readDegraded() []statusDegraded {
	all := []statusDegraded{}
	for _, reason := range degraded.Now() {
		one := statusDegraded{What: reason.What, Reason: reason.Message, Since: reason.Since.UTC()}
		encoder := zapcore.NewMapObjectEncoder()
		for _, field := range reason.Fields {
			field.AddTo(encoder)
		}
		one.Fields = encoder.Fields
		delete(one.Fields, "errorVerbose")
		for key, value := range one.Fields {
			if d, is := value.(time.Duration); is {
				one.Fields[key] = d.Seconds()
			}
		}
		if text, is := one.Fields["error"].(string); is {
			one.Reason += ": " + text
			delete(one.Fields, "error")
		}
		all = append(all, one)
	}
	return all
}

// lastStatus is made once for all streams.
var lastStatus struct {
	mu   sync.Mutex
	at   time.Time
	text []byte
}

// statusText returns the status as JSON, which is not older than a second.
func statusText() ([]byte, error) {
	lastStatus.mu.Lock()
	defer lastStatus.mu.Unlock()
	if now := time.Now(); lastStatus.text == nil || now.Sub(lastStatus.at).Abs() >= freshFor { // negative where a test has a clock of its own
		text, err := json.Marshal(readStatus())
		if err != nil {
			return nil, err
		}
		lastStatus.text, lastStatus.at = text, now
	}
	return lastStatus.text, nil
}

func serveStatus(w http.ResponseWriter, r *http.Request) error {
	if err := reads(r); err != nil {
		return err
	}
	return adminapi.Answer(w, readStatus())
}

// reads returns an error unless a request reads and has no parameters.
func reads(r *http.Request) error {
	if err := adminapi.Method(r, http.MethodGet); err != nil {
		return err
	}
	return adminapi.Parameters(r.URL.Query())
}
