package caddyfile_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
)

type object struct {
	To          []string        `json:"to,omitempty"`
	IdleTimeout caddy.Duration  `json:"idle_timeout,omitempty"`
	Retries     *int            `json:"retries,omitempty"`
	Weight      float64         `json:"weight,omitempty"`
	Port        uint16          `json:"port,omitempty"`
	Name        string          `json:"name,omitempty"`
	Strict      bool            `json:"strict,omitempty"`
	Labels      map[string]int  `json:"labels,omitempty"`
	Counts      []int           `json:"counts,omitempty"`
	Raw         json.RawMessage `json:"raw,omitempty"`
	Inner       *inner          `json:"inner,omitempty"`
	Drain       *caddy.Duration `json:"drain,omitempty"`

	Hidden string `json:"-"`
}

type inner struct {
	Timeout caddy.Duration `json:"timeout,omitempty"`
}

func (i *inner) UnmarshalJSON(data []byte) error {
	type alias inner
	return caddyfile.UnmarshalJSON(data, (*alias)(i))
}

func TestUnmarshalJSON(t *testing.T) {
	t.Parallel()
	three := 3
	for input, want := range map[string]object{
		`{}`:                          {},
		`null`:                        {},
		`{"name":null,"drain":null}`:  {},
		`{"drain":0}`:                 {Drain: new(caddy.Duration)},
		`{"to":["a","b"]}`:            {To: []string{"a", "b"}},
		`{"idle_timeout":"5s"}`:       {IdleTimeout: 5e9},
		`{"idle_timeout":5000000000}`: {IdleTimeout: 5e9},
		`{"retries":3,"port":9}`:      {Retries: &three, Port: 9},
		`{"inner":{"timeout":"1s"}}`:  {Inner: &inner{Timeout: 1e9}},
		`{"weight":0.5,"name":"n","strict":true,"labels":{"a":1},"raw":{"any":[1]}}`: {
			Weight: 0.5, Name: "n", Strict: true, Labels: map[string]int{"a": 1}, Raw: json.RawMessage(`{"any":[1]}`),
		},
	} {
		var got object
		if err := caddyfile.UnmarshalJSON([]byte(input), &got); err != nil {
			t.Errorf("%s: %v", input, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", input, got, want)
		}
	}
}

func TestUnmarshalJSONErrors(t *testing.T) {
	t.Parallel()
	const known = "expected one of to, idle_timeout, retries, weight, port, name, strict, labels, counts, raw, inner, drain"
	for input, want := range map[string]string{
		`[]`:                        `"[]": expected an object`,
		`"forward"`:                 `"forward": expected an object`,
		`{"timeout":"5s"}`:          `unknown option "timeout": ` + known,
		`{"Name":"n"}`:              `unknown option "Name": ` + known,
		`{"Hidden":"n"}`:            `unknown option "Hidden": ` + known,
		`{"-":"n"}`:                 `unknown option "-": ` + known,
		`{"idle_timeout":"5x"}`:     `idle_timeout: "5x": expected a duration such as 30s`,
		`{"idle_timeout":""}`:       `idle_timeout: "": expected a duration such as 30s`,
		`{"idle_timeout":true}`:     `idle_timeout: "true": expected a duration such as 30s`,
		`{"idle_timeout":1.5}`:      `idle_timeout: "1.5": expected a duration such as 30s`,
		`{"idle_timeout":"-1s"}`:    `idle_timeout: "-1s": expected a duration of 0 or more`,
		`{"idle_timeout":-1}`:       `idle_timeout: "-1": expected a duration of 0 or more`,
		`{"retries":"many"}`:        `retries: "many": expected a whole number`,
		`{"retries":1.5}`:           `retries: "1.5": expected a whole number`,
		`{"port":-1}`:               `port: "-1": expected a whole number of 0 or more`,
		`{"weight":"x"}`:            `weight: "x": expected a number`,
		`{"name":5}`:                `name: "5": expected a string`,
		`{"strict":"yes"}`:          `strict: "yes": expected true or false`,
		`{"to":"a"}`:                `to: "a": expected a list of strings`,
		`{"to":[5]}`:                `to: "[5]": expected a list of strings`,
		`{"counts":{}}`:             `counts: "{}": expected a list`,
		`{"labels":5}`:              `labels: "5": expected an object`,
		`{"inner":5}`:               `inner: "5": expected an object`,
		`{"inner":{"timeout":"x"}}`: `inner: timeout: "x": expected a duration such as 30s`,
		`{"inner":{"other":1}}`:     `inner: unknown option "other": expected one of timeout`,
		`{"drain":"x"}`:             `drain: "x": expected a duration such as 30s`,
		`{"drain":"-1s"}`:           `drain: "-1s": expected a duration of 0 or more`,
		`{"name":5,"strict":"yes"}`: `name: "5": expected a string`,
	} {
		var got object
		if err := caddyfile.UnmarshalJSON([]byte(input), &got); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
}

// Unknown names are refused in what encoding/json decodes by itself, too.
func TestUnmarshalJSONRefusesUnknownNamesInside(t *testing.T) {
	t.Parallel()
	type pair struct {
		Key string `json:"key"`
	}
	var options struct {
		One   pair             `json:"one"`
		Many  []pair           `json:"many"`
		Named map[string]*pair `json:"named"`
	}
	for _, input := range []string{`{"one":%}`, `{"many":[%]}`, `{"named":{"a":%}}`} {
		right, wrong := strings.Replace(input, "%", `{"key":"k"}`, 1), strings.Replace(input, "%", `{"kye":"k"}`, 1)
		if err := caddyfile.UnmarshalJSON([]byte(right), &options); err != nil {
			t.Errorf("%s: %v", right, err)
		}
		if err := caddyfile.UnmarshalJSON([]byte(wrong), &options); err == nil || !strings.Contains(err.Error(), `unknown field "kye"`) {
			t.Errorf("%s: %v, want an error", wrong, err)
		}
	}
}

// FuzzUnmarshalJSON compares with encoding/json: whatever is accepted is accepted there too, and equal. The
// input is encoded again first, as Caddy does before a module sees it: an option is never there twice.
func FuzzUnmarshalJSON(f *testing.F) {
	f.Add([]byte(`{"to":["a"],"idle_timeout":"5s","retries":2,"inner":{"timeout":0}}`))
	f.Fuzz(func(t *testing.T, input []byte) {
		var once map[string]json.RawMessage
		if json.Unmarshal(input, &once) == nil {
			input, _ = json.Marshal(once)
		}
		var got, want object
		if caddyfile.UnmarshalJSON(input, &got) != nil {
			t.Skip()
		}
		decoder := json.NewDecoder(bytes.NewReader(input))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&want); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, encoding/json %+v, %v", got, want, err)
		}
	})
}
