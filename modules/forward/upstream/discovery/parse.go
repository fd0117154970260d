package discovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// MaxBytes bounds a list of upstreams in a file or at a URL.
const MaxBytes = 16 << 20

// maxLine bounds a line of it.
const maxLine = 4096

// Parse reads a list of upstreams. It is either text, with one upstream a line and its options behind it,
//
//	10.0.0.1:9000
//	10.0.0.2:9000 weight=3 zone=east
//	db.example.com:9000 backup # what follows a # at the beginning or behind a space is a comment
//
// or a JSON array, in which an upstream is a string or an object:
//
//	["10.0.0.1:9000", {"address": "10.0.0.2:9000", "weight": 3, "zone": "east"}]
//
// Entries that make no sense are left out and counted. An error means that the list as a whole can't be used. unix says whether it may
// have unix sockets.
func Parse(data []byte, unix bool) (Answer, error) {
	c := &Collector{Unix: unix}
	if len(data) > MaxBytes {
		return Answer{}, fmt.Errorf("it has %d bytes, expected at most %d MiB", len(data), MaxBytes>>20)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var err error
	if rest := bytes.TrimLeft(data, " \t\r\n"); len(rest) > 0 && (rest[0] == '[' && isJSON(rest) || rest[0] == '{') {
		err = c.parseJSON(rest)
	} else {
		err = c.parseLines(data)
	}
	if err != nil {
		return Answer{}, err
	}
	return c.Answer()
}

// isJSON tells an array from an IPv6 address in brackets.
func isJSON(list []byte) bool {
	rest := bytes.TrimLeft(list[1:], " \t\r\n")
	return len(rest) == 0 || bytes.IndexByte([]byte(`"{]`), rest[0]) >= 0
}

func (c *Collector) parseLines(data []byte) error {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		where := "line " + strconv.Itoa(n)
		if len(line) > maxLine {
			c.Skip(fmt.Errorf("expected at most %d bytes", maxLine), where)
			continue
		}
		e, err := parseLine(string(line))
		switch {
		case errors.Is(err, errNothing):
			continue
		case err != nil:
			c.Skip(err, where)
		default:
			c.Add(e, where)
		}
		if c.TooMany() {
			return nil
		}
	}
	return nil
}

var errNothing = errors.New("nothing")

func parseLine(line string) (e Entry, err error) {
	if !utf8.ValidString(line) {
		return e, errors.New("expected UTF-8")
	}
	words := strings.Fields(line)
	for i, word := range words {
		if word[0] == '#' {
			words = words[:i]
			break
		}
	}
	if len(words) == 0 {
		return e, errNothing
	}
	e.Address = words[0]
	given := make(map[string]bool, len(words))
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		if given[name] {
			return e, fmt.Errorf("%.64q: %s: given twice", e.Address, name)
		}
		given[name] = true
		if err := e.set(name, value, word != name); err != nil {
			return e, fmt.Errorf("%.64q: %w", e.Address, err)
		}
	}
	if given["backup"] {
		if given["priority"] && e.Priority != 1 {
			return e, fmt.Errorf(`%.64q: priority: "%d": expected priority or backup, which is priority 1`, e.Address, e.Priority)
		}
		e.Priority = 1
	}
	return e, nil
}

func (e *Entry) set(name, value string, hasValue bool) (err error) {
	switch {
	case name == "backup" && !hasValue:
		return nil // parseLine sets the tier
	case name == "weight" && hasValue:
		e.Weight, err = parseNumber(name, value, upstream.MaxWeight)
		e.Drained = e.Weight == 0
	case name == "max_connections" && hasValue:
		e.MaxConnections, err = parseNumber(name, value, upstream.MaxSessions)
	case name == "priority" && hasValue:
		e.Priority, err = parseNumber(name, value, upstream.MaxPriority)
	case name == "zone" && value != "":
		e.Zone = value
	default:
		word := name
		if hasValue {
			word += "=" + value
		}
		return fmt.Errorf("%.64q: expected weight=<number>, max_connections=<count>, priority=<tier>, backup or zone=<name>", word)
	}
	return err
}

func parseNumber(name, value string, most int) (int, error) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n > uint64(most) {
		return 0, fmt.Errorf("%s: %.64q: expected a whole number from 0 to %d", name, value, most)
	}
	return int(n), nil
}

// entryJSON is an entry as a config has it, too.
type entryJSON struct {
	Address  string `json:"address"`
	Weight   *int   `json:"weight"`
	Most     int    `json:"max_connections"`
	Priority *int   `json:"priority"`
	Backup   bool   `json:"backup"`
	Zone     string `json:"zone"`
}

func (c *Collector) parseJSON(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	token, err := decoder.Token()
	if err != nil {
		return errJSON(err)
	}
	if token != json.Delim('[') {
		return fmt.Errorf("%.64q: expected a list of upstreams, such as [\"10.0.0.1:9000\"]", fmt.Sprint(token))
	}
	for n := 1; decoder.More(); n++ {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return errJSON(err)
		}
		where := "entry " + strconv.Itoa(n)
		if e, err := parseObject(raw); err != nil {
			c.Skip(err, where)
		} else {
			c.Add(e, where)
		}
		if c.TooMany() {
			return nil
		}
	}
	if _, err := decoder.Token(); err != nil {
		return errJSON(err)
	}
	if decoder.More() {
		return errors.New("expected nothing behind the list")
	}
	return nil
}

// errJSON is the error of a list that is cut off or no JSON, of which no part is used.
func errJSON(err error) error { return fmt.Errorf("expected JSON: %w", err) }

func parseObject(raw json.RawMessage) (e Entry, err error) {
	if raw[0] == '"' {
		return e, json.Unmarshal(raw, &e.Address)
	}
	if raw[0] != '{' {
		return e, fmt.Errorf("%.64q: expected an address or an object", raw)
	}
	var o entryJSON
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&o); err != nil {
		return e, err
	}
	e = Entry{Address: o.Address, MaxConnections: o.Most, Zone: o.Zone}
	if o.Weight != nil {
		e.Weight, e.Drained = *o.Weight, *o.Weight == 0
	}
	if o.Backup {
		e.Priority = 1
	}
	if o.Priority != nil {
		if o.Backup && *o.Priority != 1 {
			return e, fmt.Errorf(`%.64q: priority: "%d": expected priority or backup, which is priority 1`, o.Address, *o.Priority)
		}
		e.Priority = *o.Priority
	}
	return e, nil
}
