package delivery

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

func TestObject(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		`{"level":"info"}` + "\n":  `{"level":"info"}`,
		"2026/11/28 INFO \"x\"\tb": `{"msg":"2026/11/28 INFO \"x\"\tb"}`,
		`["x"]`:                    `{"msg":"[\"x\"]"}`,
		`{"a":1} {"b":2}`:          `{"msg":"{\"a\":1} {\"b\":2}"}`,
		`{"a":`:                    `{"msg":"{\"a\":"}`,
		"":                         `{"msg":""}`,
		"\xff":                     `{"msg":"\ufffd"}`,
	} {
		e := Entry{Line: []byte(line)}
		if got := string(e.Object()); got != want {
			t.Errorf("%q: got %s, want %s", line, got, want)
		}
	}
}

func TestTimeField(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 11, 28, 12, 0, 0, 250_000_000, time.UTC)
	for object, want := range map[string]time.Time{
		`{"level":"info","ts":1795867200.25,"msg":"x"}`:                         day,
		`{"ts":1795867200250.0}`:                                                day, // unix_milli_float
		`{"ts":1795867200250000000}`:                                            day, // unix_nano
		`{"ts":"2026-11-28T12:00:00.250Z"}`:                                     day,
		`{"ts":"2026-11-28T13:00:00.250+0100"}`:                                 day, // iso8601
		`{"ts":"2026-11-28T13:00:00.25+01:00"}`:                                 day, // rfc3339_nano
		`{"a":{"ts":1},"b":["ts",2],"c":"\"ts\":3","@timestamp":1795867200.25}`: day,
		`{ "ts" : 1795867200.25 }`:                                              day,
		`{"ts":"yesterday","@timestamp":"2026-11-28T12:00:00.250Z"}`:            day,
		`{"ts":0}`:                     {},
		`{"ts":-1}`:                    {},
		`{"ts":null}`:                  {},
		`{"ts":1e300}`:                 {},
		`{"ts":1e999}`:                 {},
		`{"ts":"2026/11/28 12:00:00"}`: {},
		`{"msg":"x"}`:                  {},
		`{}`:                           {},
	} {
		got, _, ok := TimeField([]byte(object))
		if ok != !want.IsZero() || got.Sub(want).Abs() > time.Microsecond {
			t.Errorf("%s: got %v %t, want %v", object, got, ok, want)
		}
	}
}

// The scanner is compared with encoding/json, which is slow and obvious.
func FuzzFields(f *testing.F) {
	for _, seed := range []string{
		`{"a":1,"b":[1,{"c":"}"}],"d":{"e":[]},"f":"\"\\","g":null}`, `{}`, ` { } `, `{"a":-1.5e3 , "b" : true}`, `{"\u0061":1}`, `{"a":[[],[[]],"]"]}`, `{"":""}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e := Entry{Line: data}
		object := e.Object()
		if !json.Valid(object) {
			t.Fatalf("%q is no JSON", object)
		}
		decoder := json.NewDecoder(bytes.NewReader(object))
		_, _ = decoder.Token()
		for field := range Fields(object) {
			token, err := decoder.Token()
			var name string
			if json.Unmarshal(object[field.Start:field.Start+len(field.Name)+2], &name) != nil || err != nil || token != name {
				t.Fatalf("%s: name %q, want %v (%v)", object, field.Name, token, err)
			}
			var want json.RawMessage
			if err := decoder.Decode(&want); err != nil || !bytes.Equal(want, field.Value) || !bytes.HasSuffix(object[:field.End], field.Value) {
				t.Fatalf("%s: value %q, want %q (%v)", object, field.Value, want, err)
			}
			checkElements(t, field.Value)
		}
		if decoder.More() {
			t.Fatalf("%s: fields are left", object)
		}
		_, _, _ = TimeField(object)
	})
}

func checkElements(t *testing.T, value []byte) {
	t.Helper()
	if value[0] != '[' {
		return
	}
	var want []json.RawMessage
	if err := json.Unmarshal(value, &want); err != nil {
		t.Fatal(err)
	}
	n := 0
	for element := range Elements(value) {
		if n >= len(want) || !bytes.Equal(element, want[n]) {
			t.Fatalf("%s: element %d is %q", value, n, element)
		}
		n++
	}
	if n != len(want) {
		t.Fatalf("%s: %d elements, want %d", value, n, len(want))
	}
}
