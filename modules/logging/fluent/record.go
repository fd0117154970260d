package fluent

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/tinylib/msgp/msgp"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// appendEntry appends an entry as the Forward protocol has it: its time and its fields.
func appendEntry(b []byte, e *delivery.Entry) []byte {
	object := e.Object()
	t, _, ok := delivery.TimeField(object)
	if !ok {
		t = e.Arrived
	}
	b = msgp.AppendArrayHeader(b, 2)
	b = appendTime(b, t)
	return appendObject(b, object)
}

// appendTime appends an EventTime: an extension of type 0 with the seconds and nanoseconds since 1970.
func appendTime(b []byte, t time.Time) []byte {
	const fixext8, eventTime = 0xd7, 0
	b = append(b, fixext8, eventTime)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
}

// MessagePack has the number of elements in front of them. It is filled in when they are counted, so it has the form that takes any number.
const (
	array32 = 0xdd
	map32   = 0xdf
)

func appendHeader(b []byte, kind byte) []byte { return append(b, kind, 0, 0, 0, 0) }

func setCount(b []byte, header, count int) {
	binary.BigEndian.PutUint32(b[header+1:], uint32(count))
}

func appendObject(b, object []byte) []byte {
	header, count := len(b), 0
	b = appendHeader(b, map32)
	for f := range delivery.Fields(object) {
		b = appendText(b, f.Name)
		b = appendValue(b, f.Value)
		count++
	}
	setCount(b, header, count)
	return b
}

// appendValue appends a valid JSON value.
func appendValue(b, value []byte) []byte {
	switch value[0] {
	case '{':
		return appendObject(b, value)
	case '[':
		header, count := len(b), 0
		b = appendHeader(b, array32)
		for element := range delivery.Elements(value) {
			b = appendValue(b, element)
			count++
		}
		setCount(b, header, count)
		return b
	case '"':
		return appendText(b, value[1:len(value)-1])
	case 't', 'f':
		return msgp.AppendBool(b, value[0] == 't')
	case 'n':
		return msgp.AppendNil(b)
	}
	return appendNumber(b, string(value))
}

// appendText appends what stands between the quotes of a JSON string.
func appendText(b, text []byte) []byte {
	if bytes.IndexByte(text, '\\') < 0 && utf8.Valid(text) {
		return msgp.AppendStringFromBytes(b, text)
	}
	quoted := append(append([]byte{'"'}, text...), '"')
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		s = string(bytes.ToValidUTF8(text, []byte("\ufffd")))
	}
	return msgp.AppendString(b, s)
}

func appendNumber(b []byte, text string) []byte {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return msgp.AppendInt64(b, n)
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return msgp.AppendUint64(b, n)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil { // it is more than a float64 has
		return msgp.AppendString(b, text)
	}
	return msgp.AppendFloat64(b, f)
}
