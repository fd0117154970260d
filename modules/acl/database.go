package acl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// maxDatabase is how long a database may be. It is read into memory while it is searched, because a file that is mapped
// and then cut short would end the process.
const maxDatabase = 512 << 20

var (
	errNoCountries = errors.New("it has no countries: expected a database such as GeoLite2-Country.mmdb or IPinfo's country.mmdb")
	errNoNetworks  = errors.New("it has no autonomous systems: expected a database such as GeoLite2-ASN.mmdb or IPinfo's asn.mmdb")
)

// parseFunc makes a set of the content of a file.
type parseFunc = func(data []byte) (*ipset.Set, ipset.Report, error)

// countries returns a function that collects the networks of some countries from a database.
func countries(codes []string) parseFunc {
	return func(data []byte) (*ipset.Set, ipset.Report, error) {
		return collect(data, errNoCountries, func(result maxminddb.Result) (known, wanted bool, err error) {
			code, err := countryOf(result)
			return code != "", slices.Contains(codes, code), err
		})
	}
}

// countryOf returns the code of a record's country, or of the one in which the network is registered: satellites and the like
// are in none. MaxMind has objects for these, IPinfo has the code in country_code or, beside country_name, in country.
func countryOf(result maxminddb.Result) (string, error) {
	type country struct {
		ISOCode string `maxminddb:"iso_code"`
	}
	var record struct {
		Country    country `maxminddb:"country"`
		Registered country `maxminddb:"registered_country"`
	}
	err := result.Decode(&record)
	code := cmp.Or(record.Country.ISOCode, record.Registered.ISOCode)
	if code != "" && err == nil || err != nil && !errors.As(err, new(maxminddb.UnmarshalTypeError)) {
		return code, err
	}
	var other struct {
		Code       any `maxminddb:"country_code"`
		Country    any `maxminddb:"country"`
		Registered any `maxminddb:"registered_country"`
	}
	if err := result.Decode(&other); err != nil {
		return "", otherKind(err)
	}
	for _, value := range []any{other.Code, other.Country, other.Registered} {
		if object, ok := value.(map[string]any); ok {
			value = object["iso_code"]
		}
		if code, ok := value.(string); ok && len(code) == 2 {
			return strings.ToUpper(code), nil
		}
	}
	return "", nil
}

// systems returns a function that collects the networks of some autonomous systems from a database.
func systems(numbers []uint32) parseFunc {
	return func(data []byte) (*ipset.Set, ipset.Report, error) {
		return collect(data, errNoNetworks, func(result maxminddb.Result) (known, wanted bool, err error) {
			number, err := systemOf(result)
			return number != 0, slices.Contains(numbers, number), err
		})
	}
}

// systemOf returns the number of a record's autonomous system. MaxMind has numbers, IPinfo has texts such as AS64496.
func systemOf(result maxminddb.Result) (uint32, error) {
	var record struct {
		Number any `maxminddb:"autonomous_system_number"`
		Name   any `maxminddb:"asn"`
	}
	if err := result.Decode(&record); err != nil {
		return 0, otherKind(err)
	}
	for _, value := range []any{record.Number, record.Name} {
		number, err := strconv.ParseUint(strings.TrimPrefix(strings.ToUpper(fmt.Sprint(value)), "AS"), 10, 32)
		if err == nil && number != 0 {
			return uint32(number), nil
		}
	}
	return 0, nil
}

// otherKind makes nothing of an error about a record that is of another kind: it has not what is looked for.
func otherKind(err error) error {
	if errors.As(err, new(maxminddb.UnmarshalTypeError)) {
		return nil
	}
	return err
}

// collect makes a set of the networks whose record is wanted. Networks share records, so each is decoded once. It fails
// where no record is of the kind that is known.
func collect(data []byte, errUnknown error, decode func(maxminddb.Result) (known, wanted bool, err error)) (*ipset.Set, ipset.Report, error) {
	db, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, ipset.Report{}, fmt.Errorf("expected a database in MaxMind's format: %w", plain(err))
	}
	defer db.Close()
	var builder ipset.Builder
	anyKnown := false
	decoded := make(map[uintptr]bool)
	for result := range db.Networks() {
		if err := result.Err(); err != nil {
			return nil, ipset.Report{}, plain(err)
		}
		wanted, seen := decoded[result.Offset()]
		if !seen {
			var known bool
			if known, wanted, err = decode(result); err != nil {
				return nil, ipset.Report{}, plain(err)
			}
			decoded[result.Offset()] = wanted
			anyKnown = anyKnown || known
		}
		if wanted {
			builder.Add(ipset.Of(result.Prefix()))
		}
	}
	if !anyKnown {
		return nil, ipset.Report{}, errUnknown
	}
	return builder.Set(), ipset.Report{}, nil
}

var errDamaged = errors.New("it is damaged")

// plain returns an error of the library that says what an operator can use. Those about a value name types of Go.
func plain(err error) error {
	if _, whole := err.(maxminddb.InvalidDatabaseError); whole { //nolint:errorlint // one that is wrapped is about a value
		return err
	}
	return errDamaged
}
