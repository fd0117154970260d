// Package events tells what has happened, such as a reload, a ban or an upstream that is down: to the streams of the admin API, and to the
// app `events` of the running config, by which an operator hooks scripts. Nobody who reports an event waits for those who hear of it.
package events

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

// The names of events.
const (
	Reload         = "reload"
	ConfigRejected = "config_rejected"
	UpstreamUp     = "upstream_up"
	UpstreamDown   = "upstream_down"
	UpstreamSet    = "upstream_set"
	BreakerOpen    = "breaker_open"
	BreakerClosed  = "breaker_closed"
	Ban            = "ban"
	Unban          = "unban"
	Degraded       = "degraded"
	Restored       = "restored"
	SessionsClosed = "sessions_closed"
)

// Level is how bad an event is.
type Level string

// The levels.
const (
	Info  Level = "info"
	Warn  Level = "warn"
	Error Level = "error"
)

// Event is something that has happened. It does not change.
type Event struct {
	Number uint64 // from 1 on, in the order in which events came; 0 where it has none
	Name   string
	Data   map[string]any  // what JSON has
	JSON   json.RawMessage // name, time, level, message and the fields
}

// ID tells the events of one process apart, and from those of others.
func (e *Event) ID() string { return epoch + "-" + strconv.FormatUint(e.Number, 10) }

// epoch differs from that of any other process.
var epoch = fmt.Sprintf("%08x", rand.Uint32())

// Number returns the number of an event by its ID. It reports false where that is of no event of this process.
func Number(id string) (number uint64, ok bool) {
	of, digits, ok := strings.Cut(id, "-")
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, ok && err == nil && of == epoch
}

// keptOfAName is how many events of one name are kept: a script that bans thousands is not to push out that an upstream is down.
const keptOfAName = 200

// log keeps the last events. Whoever reads it remembers how far he is, so a slow reader takes no memory and holds up nobody. The zero log
// is empty.
type log struct {
	mu   sync.Mutex
	last uint64
	kept []*Event      // by their numbers
	more chan struct{} // closed with the next event; nil while nobody waits for it
}

var all log

func init() {
	degraded.OnChange(func(begins bool, message string, fields []zap.Field) {
		if begins {
			Emit(Degraded, Warn, message, fields...)
		} else {
			Emit(Restored, Info, message, fields...)
		}
	})
}

// Emit reports an event. It never blocks. The fields are as in a log entry; durations become seconds.
func Emit(name string, level Level, message string, fields ...zap.Field) {
	e := New(name, level, message, fields...)
	all.add(e)
	toHandlers.offer(e)
}

// Report is Emit for what the log says, too. The logger has to be one of [logqueue.Logger].
func Report(to *zap.Logger, name string, level Level, message string, fields ...zap.Field) {
	at := zapcore.InfoLevel
	switch level {
	case Warn:
		at = zapcore.WarnLevel
	case Error:
		at = zapcore.ErrorLevel
	}
	if entry := to.WithOptions(zap.AddCallerSkip(1)).Check(at, message); entry != nil {
		entry.Write(fields...)
	}
	Emit(name, level, message, fields...)
}

// New returns an event that nobody is told of, without a number.
func New(name string, level Level, message string, fields ...zap.Field) *Event {
	encoder := zapcore.NewMapObjectEncoder()
	for _, field := range fields {
		field.AddTo(encoder)
	}
	data := make(map[string]any, len(encoder.Fields)+4)
	for key, value := range encoder.Fields {
		switch key {
		case "name", "time", "level", "message":
			key = "subject_" + key
		case "errorVerbose": // the error and a stack
			continue
		}
		if d, is := value.(time.Duration); is {
			value = d.Seconds()
		}
		data[key] = value
	}
	data["name"], data["time"], data["level"], data["message"] = name, time.Now().UTC(), level, message
	text, err := json.Marshal(data)
	if err != nil { // a field that is no JSON, such as a number that is none
		return New(name, level, message, zap.String("error", err.Error()))
	}
	return &Event{Name: name, Data: data, JSON: text}
}

func (l *log) add(e *Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Number = l.last
	l.kept = append(l.kept, e)
	n, first := 0, 0
	for i := len(l.kept) - 1; i >= 0; i-- {
		if l.kept[i].Name == e.Name {
			n, first = n+1, i
		}
	}
	if n > keptOfAName {
		l.kept = slices.Delete(l.kept, first, first+1)
	}
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// Since returns the events that came after one with a number, the oldest first, as far as they are kept, and how many are not kept any more. 0
// is before all. last is the number to go on with, and more is closed as soon as there is something new.
func Since(number uint64) (some []*Event, lost, last uint64, more <-chan struct{}) {
	return all.since(number)
}

func (l *log) since(number uint64) (some []*Event, lost, last uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	number = min(number, l.last)
	first, _ := slices.BinarySearchFunc(l.kept, number+1, func(e *Event, n uint64) int {
		switch {
		case e.Number < n:
			return -1
		case e.Number > n:
			return 1
		}
		return 0
	})
	some = slices.Clone(l.kept[first:])
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return some, l.last - number - uint64(len(some)), l.last, l.more
}
