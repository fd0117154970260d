package discovery

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		list string
		want []Entry
		bad  []string
	}{
		{"", nil, nil},
		{"\ufeff# none\n\n  # yet\r\n", nil, nil},
		{"10.0.0.1:9000", []Entry{{Address: "10.0.0.1:9000"}}, nil},
		{"[::1]:9000\n", []Entry{{Address: "[::1]:9000"}}, nil},
		{
			"10.0.0.1:9000 weight=3 max_connections=9 zone=east # first\r\n db:9000 backup\nudp/10.0.0.1:53 weight=0\nunix//run/db.sock priority=2\na#b:1\n",
			[]Entry{
				{Address: "10.0.0.1:9000", Weight: 3, MaxConnections: 9, Zone: "east"},
				{Address: "db:9000", Priority: 1},
				{Address: "udp/10.0.0.1:53", Drained: true},
				{Address: "unix//run/db.sock", Priority: 2},
			},
			[]string{`line 5: "a#b:1": host "a#b": expected an IP address or a name`},
		},
		{
			"ok:1\nnowhere\nok:1\n:80\n10.0.0.1:1-9\n10.0.0.256:1\n\xff:1\n",
			[]Entry{{Address: "ok:1"}},
			[]string{
				`line 2: "nowhere": expected host:port, host:first-last or unix//path`,
				`line 3: "ok:1": given twice`,
				`line 4: ":80": expected a host before the port`,
				`line 5: "10.0.0.1:1-9": expected one port`,
				`line 6: "10.0.0.256:1": host "10.0.0.256": expected an IP address or a name`,
				"",
			},
		},
		{
			"a:1 weight=70000\na:2 weigth=3\na:3 backup priority=2\na:4 weight\na:5 weight=1 weight=2\na:6 priority=0 backup",
			nil,
			[]string{
				`line 1: "a:1": weight: "70000": expected a whole number from 0 to 65535`,
				`line 2: "a:2": "weigth=3": expected weight=<number>, max_connections=<count>, priority=<tier>, backup or zone=<name>`,
				`line 3: "a:3": priority: "2": expected priority or backup, which is priority 1`,
				`line 4: "a:4": "weight": expected weight=<number>, max_connections=<count>, priority=<tier>, backup or zone=<name>`,
				`line 5: "a:5": weight: given twice`,
				`line 6: "a:6": priority: "0": expected priority or backup, which is priority 1`,
			},
		},
		{"[]", nil, nil},
		{
			`["a:1", {"address": "a:2", "weight": 0, "zone": "east"}, {"address": "a:3", "backup": true, "max_connections": 7}, 7, {"addr": "a:4"}, {}, "a:1"]`,
			[]Entry{{Address: "a:1"}, {Address: "a:2", Drained: true, Zone: "east"}, {Address: "a:3", MaxConnections: 7, Priority: 1}},
			[]string{
				`entry 4: "7": expected an address or an object`,
				`entry 5: json: unknown field "addr"`,
				`entry 6: "": expected host:port, host:first-last or unix//path`,
				`entry 7: "a:1": given twice`,
			},
		},
		{"a:1\n" + strings.Repeat("x", maxLine+1) + ":1\n", []Entry{{Address: "a:1"}}, []string{"line 2: expected at most 4096 bytes"}},
	} {
		answer, err := Parse([]byte(c.list), true)
		if err != nil {
			t.Errorf("%q: %v", c.list, err)
			continue
		}
		if !reflect.DeepEqual(answer.Entries, c.want) {
			t.Errorf("%q: got %+v, want %+v", c.list, answer.Entries, c.want)
		}
		if answer.Bad != len(c.bad) {
			t.Errorf("%q: %d bad entries, want %d", c.list, answer.Bad, len(c.bad))
		}
		for i, err := range answer.First {
			if c.bad[i] != "" && err.Error() != c.bad[i] {
				t.Errorf("%q: got  %v\nwant %s", c.list, err, c.bad[i])
			}
		}
	}
}

// A list that is wrong as a whole is not used in part.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("x", MaxBytes+1)
	var most strings.Builder
	for i := range MaxEntries + 1 {
		fmt.Fprintf(&most, "10.%d.%d.%d:1\n", i>>16, i>>8&255, i&255)
	}
	for list, want := range map[string]string{
		many:                                    "it has 16777217 bytes, expected at most 16 MiB",
		most.String():                           "it has more than 65536 upstreams",
		`["a:1", "b`:                            "expected JSON: unexpected EOF",
		`["a:1"`:                                "expected JSON: EOF",
		`["a:1"] ["b:1"]`:                       "expected nothing behind the list",
		`{"upstreams": []}`:                     `"{": expected a list of upstreams, such as ["10.0.0.1:9000"]`,
		`["a:1" "b:1"]`:                         "expected JSON: expected comma after array element",
		`["a:1", ` + strings.Repeat("[", 20000): "expected JSON: ",
	} {
		if _, err := Parse([]byte(list), false); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %s", list, err, want)
		}
	}
	if answer, err := Parse([]byte("unix//run/db.sock"), false); err != nil || answer.Bad != 1 || len(answer.Entries) != 0 {
		t.Errorf("a unix socket of another machine: %+v, %v", answer, err)
	}
}

// FuzzParse feeds any list. It must not panic, and what it takes is valid, bounded and not there twice.
func FuzzParse(f *testing.F) {
	for _, list := range []string{
		"10.0.0.1:9000 weight=3 zone=east\n[::1]:1 backup\n", `["a:1", {"address": "b:1", "weight": 0}]`, "a:1 # b\n#c\n\x00", "\ufeff[", "[[", "[::1",
	} {
		f.Add([]byte(list))
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		answer, err := Parse(list, false)
		if err != nil {
			if len(answer.Entries) > 0 {
				t.Error("a part of a wrong list")
			}
			return
		}
		var again Collector
		for _, e := range answer.Entries {
			again.Add(e, "")
		}
		if got, err := again.Answer(); got.Bad > 0 || err != nil {
			t.Errorf("%v, %v", got.First, err)
		}
		if (answer.Bad > 0) != (len(answer.First) > 0) || len(answer.First) > maxReported {
			t.Errorf("%d bad entries, %d reported", answer.Bad, len(answer.First))
		}
	})
}

// bigList is a file of so many upstreams.
func bigList(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "10.%d.%d.%d:9000 weight=%d zone=east\n", i>>16, i>>8&255, i&255, 1+i%5)
	}
	return []byte(b.String())
}

func BenchmarkParse10000(b *testing.B) {
	list := bigList(10000)
	b.ReportAllocs()
	for b.Loop() {
		if answer, err := Parse(list, true); err != nil || len(answer.Entries) != 10000 {
			b.Fatal(err)
		}
	}
}
