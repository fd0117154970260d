package admin

import (
	"encoding/csv"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// row is what the API tells of a session. The names are those of the access log, and some besides.
type row struct {
	ID              string   `json:"session_id"`
	State           string   `json:"state"`
	Network         string   `json:"network"`
	Listener        string   `json:"listener"`
	ClientIP        string   `json:"client_ip,omitempty"`
	ClientPort      uint16   `json:"client_port,omitempty"`
	Upstream        string   `json:"upstream"`
	FailedUpstreams []string `json:"failed_upstreams,omitempty"`
	BytesUp         int64    `json:"bytes_up"`
	BytesDown       int64    `json:"bytes_down"`
	RateUp          *int64   `json:"rate_up,omitempty"` // bytes per second; nil where it is not known yet
	RateDown        *int64   `json:"rate_down,omitempty"`
	DatagramsUp     *int64   `json:"datagrams_up,omitempty"` // nil where it moves none
	DatagramsDown   *int64   `json:"datagrams_down,omitempty"`
	Duration        float64  `json:"duration"` // seconds
	Idle            float64  `json:"idle"`     // seconds
	ConnectDuration float64  `json:"connect_duration,omitempty"`
	Rule            string   `json:"rule,omitempty"`
	Replaced        bool     `json:"replaced,omitempty"` // its config is no longer the running one

	rateUp, rateDown, datagramsUp, datagramsDown int64
}

// read reads what is known of a session now. It reports false where that has ended.
func (r *row) read(s *session.Session, from *rates) bool {
	l, living := s.Look()
	if !living {
		return false
	}
	now := time.Now()
	*r = row{
		ID: s.ID.String(), State: string(l.State), Network: s.Network, Listener: s.Listener, ClientPort: s.Client.Port(),
		Upstream: l.Upstream, FailedUpstreams: l.FailedUpstreams, BytesUp: l.BytesUp, BytesDown: l.BytesDown,
		Duration: now.Sub(s.Start).Seconds(), Idle: max(now.Sub(l.LastActive), 0).Seconds(), // a pause of a limit counts as moving
		ConnectDuration: l.Connect.Seconds(), Rule: l.Rule, Replaced: l.Replaced,
	}
	if s.Client.IsValid() {
		r.ClientIP = s.Client.Addr().String()
	}
	if l.Datagrams {
		r.datagramsUp, r.datagramsDown = l.DatagramsUp, l.DatagramsDown
		r.DatagramsUp, r.DatagramsDown = &r.datagramsUp, &r.datagramsDown
	}
	if up, down, known := from.of(s, l.BytesUp, l.BytesDown, l.LastActive); known {
		r.rateUp, r.rateDown = int64(up), int64(down)
		r.RateUp, r.RateDown = &r.rateUp, &r.rateDown
	}
	return true
}

// columns are those of CSV. They are named as in JSON.
var columns = []string{
	"session_id", "state", "network", "listener", "client_ip", "client_port", "upstream", "failed_upstreams", "bytes_up", "bytes_down",
	"rate_up", "rate_down", "datagrams_up", "datagrams_down", "duration", "idle", "connect_duration", "rule", "replaced",
}

// appendTo appends the values of the columns. What is not in the JSON form is empty.
func (r *row) appendTo(values []string) []string {
	return append(values,
		r.ID, r.State, r.Network, r.Listener, r.ClientIP, whole(int64(r.ClientPort), r.ClientPort != 0), r.Upstream,
		strings.Join(r.FailedUpstreams, " "), whole(r.BytesUp, true), whole(r.BytesDown, true),
		whole(r.rateUp, r.RateUp != nil), whole(r.rateDown, r.RateDown != nil),
		whole(r.datagramsUp, r.DatagramsUp != nil), whole(r.datagramsDown, r.DatagramsDown != nil),
		seconds(r.Duration, true), seconds(r.Idle, true), seconds(r.ConnectDuration, r.ConnectDuration != 0), r.Rule, strconv.FormatBool(r.Replaced))
}

func whole(n int64, known bool) string {
	if !known {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func seconds(s float64, known bool) string {
	if !known {
		return ""
	}
	return strconv.FormatFloat(s, 'f', 6, 64)
}

// answerCSV writes a table as RFC 4180 has it, with a header.
func answerCSV(w http.ResponseWriter, all iter.Seq[*row]) error {
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	table := csv.NewWriter(w)
	table.UseCRLF = true
	values := columns
	if err := table.Write(values); err != nil {
		return err
	}
	values = make([]string, 0, len(columns))
	for one := range all {
		values = one.appendTo(values[:0])
		if err := table.Write(values); err != nil {
			return err
		}
	}
	table.Flush()
	return table.Error()
}
