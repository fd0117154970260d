package settings

import (
	"fmt"
	"strconv"
	"time"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/global"
)

// AccessLog says how much may get into the access log.
type AccessLog struct {
	// Queue is how many entries may wait for a destination that takes them more slowly than sessions end. What
	// is more is dropped, counted by the metric access_log_dropped_total and reported. An entry that waits takes about
	// 2 kB. From 1 to 1000000. Default: 10000.
	Queue *int `json:"queue,omitempty"`

	// Sample bounds the entries of a status, for each handler: a rate such as 10/s, or 0 for no entries at all. The
	// metrics count every session. Default: sessions that were served have an entry each; of those that never reached
	// an upstream or, over UDP, had no reply, 10/s after the first 100, of each status and reason.
	Sample map[string]string `json:"sample,omitempty"`
}

// mostQueued is about 2 GB of entries.
const mostQueued = 1_000_000

// set puts what is given in place of the defaults.
func (l *AccessLog) set(options *global.AccessLog) error {
	if l == nil {
		return nil
	}
	if l.Queue != nil {
		if *l.Queue < 1 || *l.Queue > mostQueued {
			return fmt.Errorf(`access_log: queue: "%d": expected a whole number from 1 to %d`, *l.Queue, mostQueued)
		}
		options.Queue = *l.Queue
	}
	for status, rate := range l.Sample {
		code, perSecond, err := parseSample(status, rate)
		if err != nil {
			return fmt.Errorf("access_log: sample: %w", err)
		}
		if options.Sample == nil {
			options.Sample = make(map[int]float64)
		}
		options.Sample[code] = perSecond
	}
	return nil
}

func parseSample(status, rate string) (code int, perSecond float64, err error) {
	code, err = strconv.Atoi(status)
	if err != nil || code < 100 || code > 599 || status != strconv.Itoa(code) {
		return 0, 0, fmt.Errorf("%q: expected a status such as 403", status)
	}
	if rate == "0" {
		return code, 0, nil
	}
	n, per, err := caddyfile.ParseRate(rate)
	if err != nil {
		return 0, 0, fmt.Errorf("%w, or 0 for no entries", err)
	}
	return code, float64(n) * float64(time.Second) / float64(per), nil
}

// accessLogOption reads the option. Syntax:
//
//	access_log {
//		queue  <count>
//		sample <status> <rate>
//	}
func accessLogOption(to **AccessLog) caddyfile.Option {
	l := new(AccessLog)
	return caddyfile.Option{
		Name: "access_log",
		Set:  func([]string) error { *to = l; return nil },
		Block: []caddyfile.Option{
			{Name: "queue", Min: 1, Max: 1, Set: func(args []string) error {
				n, err := caddyfile.ParseCount(args[0], 1, mostQueued)
				l.Queue = &n
				return err
			}},
			{Name: "sample", Min: 2, Max: 2, Repeat: true, Set: func(args []string) error {
				if _, _, err := parseSample(args[0], args[1]); err != nil {
					return err
				}
				if _, given := l.Sample[args[0]]; given {
					return fmt.Errorf("%q: given twice", args[0])
				}
				if l.Sample == nil {
					l.Sample = make(map[string]string)
				}
				l.Sample[args[0]] = args[1]
				return nil
			}},
		},
	}
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (l *AccessLog) UnmarshalJSON(data []byte) error {
	type options AccessLog
	return caddyfile.UnmarshalJSON(data, (*options)(l))
}
