package delivery

import (
	"bytes"
	"encoding/json"
	"iter"
	"math"
	"strconv"
	"time"
)

// Entry is one log entry.
type Entry struct {
	// Line is what the log's encoder has made of it.
	Line []byte
	// Arrived is when it came to the queue.
	Arrived time.Time
	// ID is the entry's number within its queue.
	ID uint64
}

// Object returns the entry as a JSON object. A line that is none, as of an encoder other than JSON, becomes its field msg.
func (e *Entry) Object() []byte {
	line := bytes.TrimSpace(e.Line)
	if len(line) > 0 && line[0] == '{' && json.Valid(line) {
		return line
	}
	text, err := json.Marshal(string(line))
	if err != nil {
		return []byte(`{"msg":""}`) // which a string can't lead to
	}
	return append(append([]byte(`{"msg":`), text...), '}')
}

// Field is a field of a JSON object.
type Field struct {
	// Name is without quotes and as it stands, which is another spelling of the name where it has a backslash.
	Name []byte
	// Value is as it stands, without spaces around it.
	Value []byte
	// Start and End are where the name's first quote stands in the object, and what follows the value.
	Start, End int
}

// Fields goes through the fields of a valid JSON object.
func Fields(object []byte) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		at := space(object, 1) // behind the brace
		for at < len(object) && object[at] == '"' {
			start := at
			at = skip(object, at)
			name := object[start+1 : at-1]
			at = space(object, space(object, at)+1) // over the colon
			value := at
			at = skip(object, at)
			if !yield(Field{name, object[value:at], start, at}) {
				return
			}
			if at = space(object, at); at < len(object) && object[at] == ',' {
				at = space(object, at+1)
			}
		}
	}
}

// Elements goes through the elements of a valid JSON array.
func Elements(array []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		at := space(array, 1) // behind the bracket
		for at < len(array) && array[at] != ']' {
			start := at
			if at = skip(array, at); !yield(array[start:at]) {
				return
			}
			if at = space(array, at); at < len(array) && array[at] == ',' {
				at = space(array, at+1)
			}
		}
	}
}

// space returns where the next byte stands that is no space.
func space(data []byte, at int) int {
	for at < len(data) && (data[at] == ' ' || data[at] == '\t' || data[at] == '\n' || data[at] == '\r') {
		at++
	}
	return at
}

// skip returns what follows the value at a place of valid JSON.
func skip(data []byte, at int) int {
	depth := 0
	for at < len(data) {
		switch c := data[at]; c {
		case '"':
			at = skipString(data, at)
		case '{', '[':
			depth++
			at++
		case '}', ']':
			depth--
			at++
		case ' ', '\t', '\n', '\r', ',', ':':
			at++
		default: // a number or a word
			for at < len(data) && !bytes.ContainsRune([]byte(" \t\n\r,]}"), rune(data[at])) {
				at++
			}
		}
		if depth == 0 {
			return at
		}
	}
	return at
}

func skipString(data []byte, at int) int {
	for at++; at < len(data); at++ {
		switch data[at] {
		case '\\':
			at++
		case '"':
			return at + 1
		}
	}
	return len(data)
}

// timeNames are the fields that have the time of an entry: that of Caddy's encoder, and what Elasticsearch calls it.
var timeNames = []string{"ts", "@timestamp"}

// TimeField returns the field of a valid JSON object that has its time.
func TimeField(object []byte) (t time.Time, f Field, ok bool) {
	for f := range Fields(object) {
		for _, name := range timeNames {
			if string(f.Name) != name {
				continue
			}
			if t, ok := parseTime(f.Value); ok {
				return t, f, true
			}
		}
	}
	return time.Time{}, Field{}, false
}

// layouts are those of Caddy's option time_format that are not ambiguous.
var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.000Z0700"}

// parseTime reads a number of seconds since 1970, or of milliseconds or nanoseconds, which are so many more, or a text.
func parseTime(value []byte) (time.Time, bool) {
	if len(value) > 1 && value[0] == '"' {
		for _, layout := range layouts {
			if t, err := time.Parse(layout, string(value[1:len(value)-1])); err == nil {
				return t.UTC(), true
			}
		}
		return time.Time{}, false
	}
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(seconds > 0) {
		return time.Time{}, false
	}
	const latest = 1e11 // the year 5138, in seconds
	for scale := 0; seconds >= latest; scale++ {
		if scale == 3 {
			return time.Time{}, false
		}
		seconds /= 1000
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(math.Round(fraction*1e6))*1000).UTC(), true // to what a float64 has: microseconds
}
