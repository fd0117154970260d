package acl

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// Rule denies or allows the addresses of one source. It has either of the two, with the values that stand behind the
// option in a Caddyfile:
//
//   - prefixes, addresses and ranges: `"10.0.0.0/8"`, `"192.0.2.7"`, `"192.0.2.10-192.0.2.19"`
//   - `"file", "/path"`: a file with one of these a line
//   - `"url", "https://...", "1h", "timeout", "30s"`: a list that is fetched from there at this interval (default 1h). The
//     server may be silent for the timeout (default 30s)
//   - `"list", "name"`: a list that is edited at run time through the admin API
//   - `"country", "CN", "RU"`: the networks of these countries, by `country_database`
//   - `"asn", "64496"`: the networks of these autonomous systems, by `asn_database`
type Rule struct {
	Deny  []string `json:"deny,omitempty"`
	Allow []string `json:"allow,omitempty"`
}

// UnmarshalJSON decodes a rule and refuses what is not one.
func (r *Rule) UnmarshalJSON(data []byte) error {
	type options Rule
	if err := caddyfile.UnmarshalJSON(data, (*options)(r)); err != nil {
		return err
	}
	if (r.Deny == nil) == (r.Allow == nil) {
		return errors.New(`expected either "deny" or "allow" with a list of strings`)
	}
	return nil
}

const (
	allow = "allow"
	deny  = "deny"
)

// parts returns what the rule does, and its values.
func (r *Rule) parts() (action string, values []string) {
	if r.Allow != nil {
		return allow, r.Allow
	}
	return deny, r.Deny
}

// spec says where the addresses of a rule come from.
type spec struct {
	sourceKey          // zero where they are given in the config or in a dynamic list
	dynamic   string   // name of a dynamic list
	prefixes  []string // as configured
	ranges    []ipset.Range
	countries []string
	systems   []uint32
}

// parseRule reads the values of a rule.
func parseRule(values []string) (spec, error) {
	var s spec
	if len(values) == 0 {
		return s, errors.New("expected at least 1 value")
	}
	if err := checkURLs(values); err != nil {
		return s, err
	}
	known, err := caddyfile.Choose(values,
		caddyfile.Option{Name: "file", Min: 1, Max: 1, Set: func(args []string) error {
			s.sourceKey = sourceKey{kind: "file", location: args[0]}
			return nil
		}},
		caddyfile.Option{Name: "url", Min: 1, Max: 4, Set: s.setURL},
		caddyfile.Option{Name: "list", Min: 1, Max: 1, Set: func(args []string) error {
			s.dynamic = args[0]
			return checkListName(args[0])
		}},
		caddyfile.Option{Name: "country", Min: 1, Max: -1, Set: s.setCountries},
		caddyfile.Option{Name: "asn", Min: 1, Max: -1, Set: s.setSystems},
	)
	if !known {
		s.prefixes = values
		s.ranges, err = parsePrefixes(values)
	}
	return s, err
}

// checkURLs refuses URLs anywhere else than behind url: whatever else they were taken for would be in errors, labels and logs as it is.
func checkURLs(values []string) error {
	for i, value := range values {
		if strings.Contains(value, "://") && (i != 1 || values[0] != "url") {
			return fmt.Errorf("%q: expected a URL behind url and nowhere else", withoutSecrets(value))
		}
	}
	return nil
}

// withoutSecrets returns a value for an error. It leaves out what may be a password or a key in a URL, also in one that is mistyped:
// all before the last @, and the query.
func withoutSecrets(value string) string {
	scheme, rest, isURL := strings.Cut(value, "://")
	if !isURL {
		scheme, rest = "", value
	} else {
		scheme += "://"
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = "***" + rest[at:]
	}
	if before, _, hasQuery := strings.Cut(rest, "?"); hasQuery {
		rest = before + "?***"
	}
	return scheme + rest
}

func parsePrefixes(values []string) ([]ipset.Range, error) {
	ranges := make([]ipset.Range, len(values))
	for i, value := range values {
		var err error
		if ranges[i], err = ipset.Parse(value); err != nil {
			return nil, err
		}
	}
	return ranges, nil
}

func (s *spec) setURL(args []string) error {
	location, err := url.Parse(args[0])
	if err != nil || location.Host == "" || location.Scheme != "http" && location.Scheme != "https" {
		return fmt.Errorf("%q: expected a URL that begins with https:// or http://", withoutSecrets(args[0]))
	}
	s.sourceKey = sourceKey{kind: "url", location: args[0], interval: defaultInterval, timeout: defaultTimeout}
	further := args[1:]
	if len(further) > 0 && further[0] != "timeout" {
		interval, err := caddyfile.ParseDuration(further[0])
		if err != nil {
			return err
		}
		if s.interval = time.Duration(interval); s.interval < minInterval {
			return fmt.Errorf("%q: expected at least %s", further[0], minInterval)
		}
		further = further[1:]
	}
	if len(further) == 0 {
		return nil
	}
	if further[0] != "timeout" || len(further) != 2 {
		return fmt.Errorf("%q: expected timeout and a duration", strings.Join(further, " "))
	}
	return s.setTimeout(further[1])
}

func (s *spec) setTimeout(arg string) error {
	timeout, err := caddyfile.ParseDuration(arg)
	if s.timeout = time.Duration(timeout); err == nil && (s.timeout < minTimeout || s.timeout > fetchLimit) {
		err = fmt.Errorf("%q: expected a duration from %s to %s", arg, minTimeout, fetchLimit)
	}
	if err != nil {
		return fmt.Errorf("timeout: %w", err)
	}
	return nil
}

func (s *spec) setCountries(args []string) error {
	for _, code := range args {
		if len(code) != 2 || strings.ToUpper(code) != code || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return fmt.Errorf("%q: expected a country code of two capital letters, such as CN", code)
		}
	}
	s.countries = args
	s.sourceKey = sourceKey{kind: "country", values: strings.Join(slices.Sorted(slices.Values(args)), " ")}
	return nil
}

func (s *spec) setSystems(args []string) error {
	for _, arg := range args {
		number, err := strconv.ParseUint(arg, 10, 32)
		if err != nil || number == 0 {
			return fmt.Errorf("%q: expected the number of an autonomous system, such as 64496", arg)
		}
		s.systems = append(s.systems, uint32(number))
	}
	slices.Sort(s.systems)
	s.sourceKey = sourceKey{kind: "asn", values: strings.Trim(fmt.Sprint(s.systems), "[]")}
	return nil
}

const maxListName = 64

// checkListName refuses names that would mean something else in a path.
func checkListName(name string) error {
	strange := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_')
	}
	if name == "" || len(name) > maxListName || strings.ContainsFunc(name, strange) {
		return fmt.Errorf("%q: expected a name of letters, digits, - and _", name)
	}
	return nil
}

// label is what the rule is called in the access log and the metrics. It comes from the config alone.
func (s *spec) label(action string) string {
	switch {
	case s.dynamic != "":
		return action + " list " + s.dynamic
	case s.kind != "":
		return action + " " + s.name()
	case len(s.prefixes) > 1:
		return fmt.Sprintf("%s %s and %d more", action, s.prefixes[0], len(s.prefixes)-1)
	default:
		return action + " " + s.prefixes[0]
	}
}

// name is what logs and metrics call the source. Of a URL it leaves out the user and the query, which may be secret.
func (k *sourceKey) name() string {
	switch k.kind {
	case "url":
		location, err := url.Parse(k.location)
		if err != nil {
			return k.kind
		}
		return "url " + location.Scheme + "://" + location.Host + location.Path
	case "file":
		return "file " + k.location
	default:
		return k.kind + " " + k.values
	}
}

// config is what handler and matcher have in common.
type config struct {
	Rules           []Rule
	Default         string
	CountryDatabase string
	ASNDatabase     string
	OnDamaged       string
}

// compile loads what the rules need. After an error, too, close gives back what it has acquired.
func (rs *rules) compile(ctx caddy.Context, c config) error {
	repl := caddy.NewReplacer()
	for i := range c.Rules {
		action, values := c.Rules[i].parts()
		known := make([]string, len(values))
		for i, value := range values {
			known[i] = repl.ReplaceKnown(value, "")
		}
		s, err := parseRule(known)
		if err != nil && !slices.Equal(known, values) {
			err = fmt.Errorf("%q, which is %w", withoutSecrets(strings.Join(values, " ")), err)
		}
		if err == nil {
			s.allow = action == allow && (s.kind == "file" || s.kind == "url")
			err = s.complete(c, repl)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", action, err)
		}
		loaded, err := rs.load(ctx, &s, c.OnDamaged)
		if err != nil {
			return fmt.Errorf("%s: %w", s.label(action), s.nameDatabase(err))
		}
		if s.dynamic != "" {
			rs.release = append(rs.release, loaded.serves(action == allow))
		}
		rs.add(rule{action == allow, s.label(action), loaded}, s.ranges)
	}
	rs.addFixed()
	if err := rs.setDefault(c.Default); err != nil {
		return err
	}
	return rs.await()
}

// await returns when all feeds have a content. They are fetched at the same time, and other handlers may load lists meanwhile.
func (rs *rules) await() error {
	for _, waiting := range rs.awaited {
		if err := waiting.feed.await(); err != nil {
			return fmt.Errorf("%s: %w", waiting.label, err)
		}
	}
	rs.awaited = nil
	return nil
}

// complete adds the database that the rule needs.
func (s *spec) complete(c config, repl *caddy.Replacer) error {
	switch {
	case s.kind == "country" && c.CountryDatabase == "":
		return errors.New("country: expected the option country_database with the path of a database")
	case s.kind == "asn" && c.ASNDatabase == "":
		return errors.New("asn: expected the option asn_database with the path of a database")
	case s.kind == "country":
		s.location = repl.ReplaceKnown(c.CountryDatabase, "")
	case s.kind == "asn":
		s.location = repl.ReplaceKnown(c.ASNDatabase, "")
	}
	return nil
}

// nameDatabase adds the database to an error of a rule that needs one, whose values do not say which.
func (s *spec) nameDatabase(err error) error {
	if s.kind == "country" || s.kind == "asn" {
		return fmt.Errorf("%s_database: %q: %w", s.kind, s.location, err)
	}
	return err
}

// setDefault sets the rule for clients that no other rule contains. Without a default in the config it does the opposite of
// the rules, which must be of one kind then.
func (rs *rules) setDefault(given string) error {
	var allows, denies string
	for _, r := range rs.all {
		if r.allow && allows == "" {
			allows = r.label
		} else if !r.allow && denies == "" {
			denies = r.label
		}
	}
	switch {
	case given != "":
	case allows != "" && denies != "":
		return fmt.Errorf(`default: expected allow or deny, because there are both "%s" and "%s"`, denies, allows)
	case allows != "":
		given = deny
	case denies != "":
		given = allow
	default:
		return errNothing
	}
	rs.fallback = rule{allow: given == allow, label: "default " + given}
	return nil
}

// load returns the list of a rule, which all handlers share that have the same source. A rule whose addresses are in the config
// has none.
func (rs *rules) load(ctx caddy.Context, s *spec, onDamaged string) (*list, error) {
	switch {
	case s.dynamic != "":
		ref, err := dynamicLists.Acquire(s.dynamic, func() (*dynamic, error) { return openDynamic(s.dynamic, ctx.Storage()) })
		if err != nil {
			return nil, err
		}
		rs.release = append(rs.release, withoutError(ref.Value().storage.Use(ctx.Storage())), ref.Release, withoutError(ref.Value().wait))
		if text := ref.Value().damages(); text != "" && onDamaged == damagedRefuse {
			return nil, fmt.Errorf("%s: expected a list that can be read, because of on_damaged refuse", text)
		}
		return ref.Value().content(), nil
	case s.kind != "":
		ref, err := sources.Acquire(s.sourceKey, func() (source, error) { return s.open(ctx) })
		if err != nil {
			return nil, err
		}
		if f, ok := ref.Value().(*feed); ok {
			rs.release = append(rs.release, withoutError(f.storage.Use(ctx.Storage())))
			rs.awaited = append(rs.awaited, awaited{s.label(s.action()), f})
		}
		rs.release = append(rs.release, ref.Release)
		return ref.Value().content(), nil
	default:
		return nil, nil
	}
}

// action is what a rule with this feed does.
func (s *spec) action() string {
	if s.allow {
		return allow
	}
	return deny
}

func withoutError(f func()) func() error { return func() error { f(); return nil } }

// open loads a source for the first time.
func (s *spec) open(ctx caddy.Context) (source, error) {
	switch s.kind {
	case "url":
		f := newFeed(s.sourceKey, ctx.Storage(), feedClient)
		f.begin()
		return f, nil
	case "country":
		return openFile(s.name(), s.location, databaseFormat(countries(s.countries)))
	case "asn":
		return openFile(s.name(), s.location, databaseFormat(systems(s.systems)))
	default:
		return openFile(s.name(), s.location, listFormat(s.hostBits()))
	}
}

// close gives back what compile has acquired.
func (rs *rules) close() error {
	var errs []error
	for _, release := range rs.release {
		errs = append(errs, release())
	}
	rs.release = nil
	return errors.Join(errs...)
}
