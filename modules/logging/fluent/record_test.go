package fluent

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// decoded reads an entry with the decoder of the library.
func decoded(t *testing.T, data []byte) (at time.Time, record map[string]any) {
	t.Helper()
	n, rest, err := msgp.ReadArrayHeaderBytes(data)
	if err != nil || n != 2 || len(rest) < 10 || rest[0] != 0xd7 || rest[1] != 0 {
		t.Fatalf("% x: %v", data, err)
	}
	at = time.Unix(int64(binary.BigEndian.Uint32(rest[2:])), int64(binary.BigEndian.Uint32(rest[6:])))
	record, rest, err = msgp.ReadMapStrIntfBytes(rest[10:], nil)
	if err != nil || len(rest) > 0 {
		t.Fatalf("% x: %v, %d bytes are left", data, err, len(rest))
	}
	return at, record
}

func TestRecord(t *testing.T) {
	t.Parallel()
	line := `{"level":"info","ts":1795867200.25,"n":-3,"big":18446744073709551615,"more":1e400,"f":0.5,"yes":true,"no":false,"nil":null,` +
		`"list":["a",{"b":[]},2],"text":"\"\u00e4\ud83d\ude00\n","\u0061":"escaped"}`
	e := delivery.Entry{Line: []byte(line), Arrived: time.Unix(1, 0)}
	at, got := decoded(t, appendEntry(nil, &e))
	want := map[string]any{
		"level": "info", "ts": 1795867200.25, "n": int64(-3), "big": uint64(18446744073709551615), "more": "1e400", "f": 0.5, "yes": true, "no": false, "nil": nil,
		"list": []any{"a", map[string]any{"b": []any{}}, int64(2)}, "text": "\"ä😀\n", "a": "escaped",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
	if want := time.Unix(1795867200, 250_000_000); !at.Equal(want) {
		t.Errorf("the time is %v, want %v", at, want)
	}
	e.Line = []byte("no JSON")
	if at, got := decoded(t, appendEntry(nil, &e)); !at.Equal(e.Arrived) || !reflect.DeepEqual(got, map[string]any{"msg": "no JSON"}) {
		t.Errorf("%v %v", at, got)
	}
}

// Whatever is valid JSON becomes what encoding/json reads.
func FuzzRecord(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-2,3.5e1,"x\u0000\ud800",true,null,{"b":{}}]}`, `{"":18446744073709551615}`, `{"a":1,"a":2}`, "text", "{\"\xff\":\"\xfe\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e := delivery.Entry{Line: line, Arrived: time.Unix(1, 0)}
		var want map[string]any
		if err := json.Unmarshal(e.Object(), &want); err != nil {
			return // a number that no float64 has
		}
		_, got := decoded(t, appendEntry(nil, &e))
		one, _ := json.Marshal(floats(got))
		two, _ := json.Marshal(want)
		if !bytes.Equal(one, two) {
			t.Fatalf("%q: got %s, want %s", line, one, two)
		}
	})
}

// floats has all numbers as encoding/json has them.
func floats(v any) any {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	case map[string]any:
		for name := range v {
			v[name] = floats(v[name])
		}
	case []any:
		for i := range v {
			v[i] = floats(v[i])
		}
	}
	return v
}

func BenchmarkEntry(b *testing.B) {
	e := delivery.Entry{Line: []byte(`{"level": "info", "ts": 1795851739.77, "logger": "layer4.log.access", "msg": "session", "session_id": "c9b6233d00000001",` +
		`"network": "tcp", "listener": "127.0.0.1:8080", "client_ip": "192.0.2.7", "client_port": 51228, "upstream": "127.0.0.1:9001",` +
		`"bytes_up": 78, "bytes_down": 137, "duration": 0.0019, "connect_duration": 0.0002, "status": 200, "reason": "client_fin"}`)}
	var to []byte
	b.ReportAllocs()
	for b.Loop() {
		to = appendEntry(to[:0], &e)
	}
}
