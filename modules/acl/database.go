package acl

import (
	"errors"
	"fmt"
	"slices"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// maxDatabase is how long a database may be. It is read into memory while it is searched, because a file that is mapped
// and then cut short would end the process.
const maxDatabase = 512 << 20

var (
	errNoCountries = errors.New("it has no countries: expected a database such as GeoLite2-Country.mmdb")
	errNoNetworks  = errors.New("it has no autonomous systems: expected a database such as GeoLite2-ASN.mmdb")
)

// countries returns a function that collects the networks of some countries from a database.
func countries(codes []string) func([]byte) (*ipset.Set, ipset.Report, error) {
	type country struct {
		ISOCode string `maxminddb:"iso_code"`
	}
	return func(data []byte) (*ipset.Set, ipset.Report, error) {
		return collect(data, errNoCountries, func(result maxminddb.Result) (known, wanted bool, err error) {
			var record struct {
				Country    country `maxminddb:"country"`
				Registered country `maxminddb:"registered_country"`
			}
			err = result.Decode(&record)
			code := record.Country.ISOCode
			if code == "" { // satellites and the like
				code = record.Registered.ISOCode
			}
			return code != "", slices.Contains(codes, code), err
		})
	}
}

// systems returns a function that collects the networks of some autonomous systems from a database.
func systems(numbers []uint32) func([]byte) (*ipset.Set, ipset.Report, error) {
	return func(data []byte) (*ipset.Set, ipset.Report, error) {
		return collect(data, errNoNetworks, func(result maxminddb.Result) (known, wanted bool, err error) {
			var record struct {
				Number uint32 `maxminddb:"autonomous_system_number"`
			}
			err = result.Decode(&record)
			return record.Number != 0, slices.Contains(numbers, record.Number), err
		})
	}
}

// collect makes a set of the networks whose record is wanted. Networks share records, so each is decoded once. It fails
// where no record is of the kind that is known.
func collect(data []byte, errUnknown error, decode func(maxminddb.Result) (known, wanted bool, err error)) (*ipset.Set, ipset.Report, error) {
	db, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, ipset.Report{}, fmt.Errorf("expected a database in MaxMind's format: %w", err)
	}
	defer db.Close()
	var builder ipset.Builder
	anyKnown := false
	decoded := make(map[uintptr]bool)
	for result := range db.Networks() {
		if err := result.Err(); err != nil {
			return nil, ipset.Report{}, err
		}
		wanted, seen := decoded[result.Offset()]
		if !seen {
			var known bool
			if known, wanted, err = decode(result); err != nil {
				return nil, ipset.Report{}, err
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
