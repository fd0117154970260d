package acl

import (
	"encoding/binary"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// record is what a database has of a network.
type record map[string]any

func inCountry(code string) record { return record{"country": record{"iso_code": code}} }

// database builds a database in MaxMind's format (version 2.0 of its specification), with records of 24 bits in its
// tree and IPv4 networks below ::/96.
func database(networks map[string]record) []byte {
	type node [2]int // below the number of nodes: a node; -1: nothing; beyond: a record
	const isRecord = 1 << 20
	nodes := []node{{-1, -1}}
	var data []byte
	for network, value := range networks {
		prefix := netip.MustParsePrefix(network)
		bits := prefix.Bits()
		address := prefix.Addr().As16()
		if prefix.Addr().Is4() {
			bits += 96
			copy(address[:12], make([]byte, 12))
		}
		at := 0
		for bit := range bits {
			side := address[bit/8] >> (7 - bit%8) & 1
			if bit == bits-1 {
				nodes[at][side] = isRecord + len(data)
				break
			}
			if nodes[at][side] < 0 {
				nodes = append(nodes, node{-1, -1})
				nodes[at][side] = len(nodes) - 1
			}
			at = nodes[at][side]
		}
		data = appendValue(data, value)
	}
	var file []byte
	for _, n := range nodes {
		for _, value := range n {
			switch {
			case value < 0:
				value = len(nodes)
			case value >= isRecord:
				value += len(nodes) + 16 - isRecord
			}
			file = append(file, byte(value>>16), byte(value>>8), byte(value))
		}
	}
	file = append(file, make([]byte, 16)...)
	file = append(file, data...)
	file = append(file, "\xab\xcd\xefMaxMind.com"...)
	return appendValue(file, record{
		"node_count": uint32(len(nodes)), "record_size": uint16(24), "ip_version": uint16(6), "database_type": "Test",
		"languages": []any{}, "binary_format_major_version": uint16(2), "binary_format_minor_version": uint16(0),
		"build_epoch": uint64(1), "description": record{},
	})
}

// appendValue encodes a value: the type and the size in the first byte, then the content.
func appendValue(to []byte, value any) []byte {
	switch v := value.(type) {
	case record:
		to = append(to, byte(7<<5|len(v)))
		for name, member := range v {
			to = appendValue(appendValue(to, name), member)
		}
	case string:
		to = append(append(to, byte(2<<5|len(v))), v...)
	case uint16:
		to = binary.BigEndian.AppendUint16(append(to, 5<<5|2), v)
	case uint32:
		to = binary.BigEndian.AppendUint32(append(to, 6<<5|4), v)
	case uint64:
		to = binary.BigEndian.AppendUint64(append(to, 8, 9-7), v)
	case []any:
		to = append(to, byte(len(v)), 11-7)
	}
	return to
}

var countryDatabase = database(map[string]record{
	"192.0.2.0/24":    inCountry("CN"),
	"198.51.100.0/24": inCountry("DE"),
	"203.0.113.0/24":  {"registered_country": record{"iso_code": "RU"}},
	"203.0.112.0/24":  {"country": record{"iso_code": "US"}, "registered_country": record{"iso_code": "RU"}},
	"2001:db8::/32":   inCountry("CN"),
	"2001:db9::/32":   {"continent": record{"code": "EU"}},
})

var asnDatabase = database(map[string]record{
	"192.0.2.0/25":   {"autonomous_system_number": uint32(64496)},
	"192.0.2.128/25": {"autonomous_system_number": uint32(4200000000)},
	"2001:db8::/32":  {"autonomous_system_number": uint32(64496)},
})

// As IPinfo makes them: texts in the place of objects and numbers.
var (
	ipinfoCountries = database(map[string]record{
		"192.0.2.0/24":    {"country": "CN", "country_name": "China", "continent": "AS"},
		"198.51.100.0/24": {"country": "DE", "country_name": "Germany", "continent": "EU"},
	})
	ipinfoLite = database(map[string]record{
		"192.0.2.0/24":    {"country": "China", "country_code": "CN", "asn": "AS64496", "as_name": "Example"},
		"198.51.100.0/24": {"country": "Germany", "country_code": "DE", "asn": "AS64497"},
		"203.0.113.0/24":  {"country": "Germany", "country_code": "DE"},
	})
)

func TestCountriesAndSystems(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		collect func([]byte) (*ipset.Set, ipset.Report, error)
		data    []byte
		in, out []string
	}{
		{
			"two countries", countries([]string{"CN", "RU"}), countryDatabase,
			[]string{"192.0.2.0", "192.0.2.255", "2001:db8:ffff::1", "203.0.113.9", "::ffff:192.0.2.7"},
			[]string{"192.0.1.255", "192.0.3.0", "198.51.100.1", "203.0.112.1", "2001:db9::1", "::1", "::c000:201"},
		},
		{"none of it", countries([]string{"FR"}), countryDatabase, nil, []string{"192.0.2.1", "2001:db8::1"}},
		{
			"one system", systems([]uint32{64496}), asnDatabase,
			[]string{"192.0.2.127", "2001:db8::1"},
			[]string{"192.0.2.128", "2001:db9::1"},
		},
		{"IPinfo's countries", countries([]string{"CN"}), ipinfoCountries, []string{"192.0.2.1"}, []string{"198.51.100.1"}},
		{"IPinfo Lite's countries", countries([]string{"CN"}), ipinfoLite, []string{"192.0.2.1"}, []string{"198.51.100.1"}},
		{"IPinfo Lite's systems", systems([]uint32{64496}), ipinfoLite, []string{"192.0.2.1"}, []string{"198.51.100.1", "203.0.113.1"}},
		{"a large number", systems([]uint32{1, 4200000000}), asnDatabase, []string{"192.0.2.128"}, []string{"192.0.2.127"}},
	} {
		set, _, err := c.collect(c.data)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, a := range c.in {
			if !set.Contains(addr(a)) {
				t.Errorf("%s: %s is missing", c.name, a)
			}
		}
		for _, a := range c.out {
			if set.Contains(addr(a)) {
				t.Errorf("%s: %s should not be there", c.name, a)
			}
		}
	}
}

func TestWrongDatabase(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		collect func([]byte) (*ipset.Set, ipset.Report, error)
		data    []byte
		want    string
	}{
		"systems without any":           {systems([]uint32{1}), countryDatabase, errNoNetworks.Error()},
		"countries without any":         {countries([]string{"CN"}), asnDatabase, errNoCountries.Error()},
		"systems in IPinfo's countries": {systems([]uint32{1}), ipinfoCountries, errNoNetworks.Error()},
		"countries of another kind": {countries([]string{"CN"}), database(map[string]record{
			"192.0.2.0/24": {"country": uint32(7), "registered_country": []any{}, "country_code": record{}},
		}), errNoCountries.Error()},
		"systems of another kind": {systems([]uint32{1}), database(map[string]record{
			"192.0.2.0/24": {"autonomous_system_number": "x", "asn": record{}},
		}), errNoNetworks.Error()},
		"a list": {countries([]string{"CN"}), []byte(one), "expected a database in MaxMind's format: "},
		"empty":  {countries([]string{"CN"}), nil, "expected a database in MaxMind's format: "},
	} {
		if _, _, err := c.collect(c.data); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// A database that is damaged anywhere is refused or read, and nothing worse: its error says nothing of types of Go.
func TestDamagedDatabase(t *testing.T) {
	t.Parallel()
	for _, data := range [][]byte{countryDatabase, asnDatabase, ipinfoCountries, ipinfoLite} {
		for i := range data {
			for bit := range 8 {
				damaged := append([]byte(nil), data...)
				damaged[i] ^= byte(1 << bit)
				for _, content := range [][]byte{damaged, data[:i]} {
					for _, collect := range []parseFunc{countries([]string{"CN"}), systems([]uint32{64496})} {
						_, _, err := collect(content)
						if err != nil && typeOfGo.MatchString(err.Error()) {
							t.Fatalf("byte %d, bit %d: %v", i, bit, err)
						}
					}
				}
			}
		}
	}
}

var typeOfGo = regexp.MustCompile(`\b(struct|interface|u?int(8|16|32|64)|float(32|64)|map\[|any)\b|maxminddb\.|acl\.|\[\]`)

// A database that is replaced is read again.
func TestDatabaseIsFollowed(t *testing.T) {
	t.Parallel()
	path := tempFile(t, string(countryDatabase))
	f, err := openFile("country CN "+path, path, databaseFormat(countries([]string{"CN"})))
	must(t, err)
	t.Cleanup(func() { must(t, f.Destruct()) })
	if !f.contains(addr(one)) {
		t.Error("the networks are not loaded")
	}
	write(t, path+".new", string(database(map[string]record{"198.51.100.0/24": inCountry("CN")})))
	must(t, os.Rename(path+".new", path))
	mustBecome(t, f, "198.51.100.1", one)
}
