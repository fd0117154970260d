package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What the admin API answers. docs/ has what the fields mean.

type session struct {
	ID         string  `json:"session_id"`
	State      string  `json:"state"`
	Network    string  `json:"network"`
	Listener   string  `json:"listener"`
	ClientIP   string  `json:"client_ip"`
	ClientPort uint16  `json:"client_port"`
	Upstream   string  `json:"upstream"`
	BytesUp    int64   `json:"bytes_up"`
	BytesDown  int64   `json:"bytes_down"`
	RateUp     *int64  `json:"rate_up"`
	RateDown   *int64  `json:"rate_down"`
	Duration   float64 `json:"duration"`
	Idle       float64 `json:"idle"`
	Rule       string  `json:"rule"`
	Replaced   bool    `json:"replaced"`
}

// client returns the address and the port of who has connected.
func (s *session) client() string {
	switch {
	case s.ClientIP == "":
		return "-"
	case strings.Contains(s.ClientIP, ":"):
		return "[" + s.ClientIP + "]:" + strconv.Itoa(int(s.ClientPort))
	}
	return s.ClientIP + ":" + strconv.Itoa(int(s.ClientPort))
}

type sessions []session

// UnmarshalJSON decodes the list.
func (all *sessions) UnmarshalJSON(data []byte) error { return decodeAll(data, (*[]session)(all)) }

func (all *sessions) table() *table {
	t := &table{header: []string{"SESSION", "NET", "CLIENT", "LISTENER", "UPSTREAM", "STATE", ">UP/S", ">DOWN/S", ">UP", ">DOWN", ">IDLE", ">AGE", "RULE"}}
	for i := range *all {
		s := &(*all)[i]
		t.add(s.ID, s.Network, s.client(), s.Listener, s.Upstream, s.State, rate(s.RateUp), rate(s.RateDown),
			size(float64(s.BytesUp)), size(float64(s.BytesDown)), span(s.Idle), span(s.Duration), s.Rule)
	}
	return t
}

type upstream struct {
	Name             string    `json:"name"`
	Handler          string    `json:"handler"`
	State            string    `json:"state"`
	Weight           int       `json:"weight"`
	ConfiguredWeight *int      `json:"configured_weight"`
	Priority         int       `json:"priority"`
	Zone             string    `json:"zone"`
	Sessions         int64     `json:"sessions"`
	Queued           int64     `json:"queued"`
	Fails            int       `json:"fails"`
	LastError        string    `json:"last_error"`
	CheckedAt        time.Time `json:"checked_at"`
	SetAt            time.Time `json:"set_at"`
}

// weight shows the weight, and that of the config where another one was set.
func (u *upstream) weight() string {
	if u.ConfiguredWeight == nil {
		return strconv.Itoa(u.Weight)
	}
	return strconv.Itoa(u.Weight) + " (config: " + strconv.Itoa(*u.ConfiguredWeight) + ")"
}

type upstreams []upstream

// UnmarshalJSON decodes the list.
func (all *upstreams) UnmarshalJSON(data []byte) error { return decodeAll(data, (*[]upstream)(all)) }

func (all *upstreams) table() *table {
	t := &table{header: []string{"UPSTREAM", "STATE", ">SESSIONS", ">QUEUED", ">FAILS", "WEIGHT", ">TIER", "ZONE", "HANDLER", "LAST ERROR"}}
	for i := range *all {
		u := &(*all)[i]
		t.add(u.Name, u.State, count(u.Sessions), count(u.Queued), strconv.Itoa(u.Fails), u.weight(), strconv.Itoa(u.Priority), u.Zone, u.Handler, u.LastError)
	}
	return t
}

type list struct {
	Name        string     `json:"name"`
	Size        int        `json:"size"`
	Damaged     string     `json:"damaged"`
	Loaded      *time.Time `json:"loaded"`
	Lines       int        `json:"lines"`
	BadLines    int        `json:"bad_lines"`
	MaskedLines int        `json:"masked_lines"`
	Error       string     `json:"error"`
	Entries     entries    `json:"entries"`
}

type entries []entry

// UnmarshalJSON decodes the list, which may be null.
func (all *entries) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	return decodeAll(data, (*[]entry)(all))
}

type entry struct {
	Prefix  string     `json:"prefix"`
	Added   *time.Time `json:"added"`
	Expires *time.Time `json:"expires"`
	TTL     string     `json:"ttl"`
	By      string     `json:"by"`
	Reason  string     `json:"reason"`
}

// wrong says in a few words what is not as it should be with a list.
func (l *list) wrong() string {
	var wrong []string
	if l.Damaged != "" {
		wrong = append(wrong, "damaged: "+l.Damaged)
	}
	if l.Error != "" {
		wrong = append(wrong, "not loaded: "+l.Error)
	}
	if l.BadLines > 0 {
		wrong = append(wrong, count(int64(l.BadLines))+" of "+count(int64(l.Lines))+" lines left out")
	}
	if l.MaskedLines > 0 {
		wrong = append(wrong, plural(l.MaskedLines, "line")+" not taken as written, but as networks")
	}
	return strings.Join(wrong, ", ")
}

type lists []list

// UnmarshalJSON decodes the list.
func (all *lists) UnmarshalJSON(data []byte) error { return decodeAll(data, (*[]list)(all)) }

func (all *lists) table() *table {
	t := &table{header: []string{"LIST", ">ENTRIES", "LOADED", "NOT RIGHT"}}
	for i := range *all {
		l := &(*all)[i]
		t.add(l.Name, count(int64(l.Size)), when(l.Loaded), l.wrong())
	}
	return t
}

func (l *list) table() *table {
	t := &table{header: []string{"PREFIX", "ADDED", "LEFT", "BY", "REASON"}}
	for _, e := range l.Entries {
		if e.TTL == "" {
			e.TTL = "stays"
		}
		t.add(e.Prefix, when(e.Added), e.TTL, e.By, e.Reason)
	}
	return t
}

type limit struct {
	Name  string  `json:"name"`
	Limit string  `json:"limit"`
	Key   string  `json:"key"`
	Used  float64 `json:"used"`
}

type limits []limit

// UnmarshalJSON decodes the list.
func (all *limits) UnmarshalJSON(data []byte) error { return decodeAll(data, (*[]limit)(all)) }

func (all *limits) table() *table {
	t := &table{header: []string{">USED", "KEY", "LIMIT", "HANDLER"}}
	for _, l := range *all {
		t.add(strconv.FormatFloat(l.Used*100, 'f', 0, 64)+"%", l.Key, l.Limit, l.Name)
	}
	return t
}

type names []string

// UnmarshalJSON decodes the list, which may be null.
func (all *names) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	return decodeAll(data, (*[]string)(all))
}

type mapping struct {
	Listener      string   `json:"listener"`
	Network       string   `json:"network"`
	Handler       string   `json:"handler"`
	Upstreams     names    `json:"upstreams"`
	Sessions      int64    `json:"sessions"`
	SessionsTotal int64    `json:"sessions_total"`
	RateUp        *float64 `json:"rate_up"`
	RateDown      *float64 `json:"rate_down"`
}

type mappings []mapping

// UnmarshalJSON decodes the list.
func (all *mappings) UnmarshalJSON(data []byte) error { return decodeAll(data, (*[]mapping)(all)) }

func (all *mappings) table() *table {
	t := &table{header: []string{"LISTENER", "NET", "HANDLER", ">SESSIONS", ">TOTAL", ">UP/S", ">DOWN/S", "UPSTREAMS"}}
	for _, m := range *all {
		t.add(m.Listener, m.Network, m.Handler, count(m.Sessions), count(m.SessionsTotal), known(m.RateUp), known(m.RateDown), strings.Join(m.Upstreams, " "))
	}
	return t
}

func known(rate *float64) string {
	if rate == nil {
		return "-"
	}
	return size(*rate)
}

type status struct {
	Version      string    `json:"version"`
	CaddyVersion string    `json:"caddy_version"`
	GoVersion    string    `json:"go_version"`
	Started      time.Time `json:"started"`
	Uptime       float64   `json:"uptime"`
	Config       struct {
		Loaded  time.Time `json:"loaded"`
		Reloads struct {
			Success int64 `json:"success"`
			Failure int64 `json:"failure"`
		} `json:"reloads"`
		LastError string `json:"last_error"`
	} `json:"config"`
	Sessions struct {
		TCP      int64 `json:"tcp"`
		UDP      int64 `json:"udp"`
		Replaced int64 `json:"replaced"`
	} `json:"sessions"`
	Rates struct {
		BytesUp   float64 `json:"bytes_up"`
		BytesDown float64 `json:"bytes_down"`
		Sessions  float64 `json:"sessions"`
		Refusals  float64 `json:"refusals"`
	} `json:"rates"`
	Refusals    map[string]int64 `json:"refusals"`
	Descriptors struct {
		Used  *int64 `json:"used"` // nil where the system does not tell
		Limit int64  `json:"limit"`
	} `json:"descriptors"`
	EventLoopLag      *float64   `json:"event_loop_lag"`
	LogEntriesDropped int64      `json:"log_entries_dropped"`
	Degraded          []degraded `json:"degraded"`
}

// UnmarshalJSON decodes a status. Another object that passes for one would show that nothing runs.
func (s *status) UnmarshalJSON(data []byte) error {
	if len(data) > maxStatus {
		return errors.New("the status is too long")
	}
	type fields status
	if err := json.Unmarshal(data, (*fields)(s)); err != nil {
		return err
	}
	if s.Started.IsZero() {
		return errors.New("expected a status, which says since when the process runs")
	}
	return nil
}

type degraded struct {
	What   string         `json:"what"`
	Reason string         `json:"reason"`
	Since  time.Time      `json:"since"`
	Fields map[string]any `json:"fields"`
}

// text says what is not as configured, and where.
func (d *degraded) text() string {
	text := d.What
	for _, name := range slices.Sorted(maps.Keys(d.Fields)) {
		text += fmt.Sprintf(" %s=%v", name, d.Fields[name])
	}
	return text + ": " + d.Reason
}

func (s *status) table() *table {
	t := &table{header: []string{"WHAT", "NOW"}}
	t.add("version", s.Version+", Caddy "+s.CaddyVersion+", "+s.GoVersion)
	t.add("running for", span(s.Uptime)+", since "+when(&s.Started))
	t.add("config loaded", when(&s.Config.Loaded))
	t.add("reloads", count(s.Config.Reloads.Success)+" done, "+count(s.Config.Reloads.Failure)+" rejected")
	if s.Config.LastError != "" {
		t.add("last rejected because", s.Config.LastError)
	}
	t.add("sessions", count(s.Sessions.TCP)+" TCP, "+count(s.Sessions.UDP)+" UDP, of which "+count(s.Sessions.Replaced)+" began with a config before this one")
	t.add("moved", size(s.Rates.BytesUp)+"/s up, "+size(s.Rates.BytesDown)+"/s down")
	t.add("new sessions", perSecond(s.Rates.Sessions))
	t.add("refusals", perSecond(s.Rates.Refusals))
	for _, reason := range s.reasons() {
		t.add("  "+reason, count(s.Refusals[reason])+" in all")
	}
	t.add("descriptors", s.descriptors())
	if s.EventLoopLag != nil {
		t.add("event loop lag", strconv.FormatFloat(*s.EventLoopLag*1000, 'f', 1, 64)+"ms")
	}
	t.add("log entries dropped", count(s.LogEntriesDropped))
	for _, d := range s.Degraded {
		t.add("not as configured", d.text()+", since "+when(&d.Since))
	}
	return t
}

// descriptors says how many are taken.
func (s *status) descriptors() string {
	if s.Descriptors.Used == nil {
		return "at most " + count(s.Descriptors.Limit)
	}
	return count(*s.Descriptors.Used) + " of " + count(s.Descriptors.Limit)
}

// reasons returns the reasons of refusals, the most frequent first.
func (s *status) reasons() []string {
	return slices.SortedFunc(maps.Keys(s.Refusals), func(a, b string) int {
		if s.Refusals[a] != s.Refusals[b] {
			return int(max(min(s.Refusals[b]-s.Refusals[a], 1), -1))
		}
		return strings.Compare(a, b)
	})
}
