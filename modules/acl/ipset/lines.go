package ipset

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// parser makes a set of the lines of a list. A line may be
//
//   - an address, a prefix (192.0.2.0/24, 192.0.2.0/255.255.255.0, 192.0.2.0 255.255.255.0) or a range, with or without quotes
//   - that, and further columns behind a comma, a semicolon or a tab, as in CSV. The first line may name the columns
//   - an object in JSON whose cidr, prefix, ip or address is one
//   - a line of what `ipset save` writes
//   - a comment, which begins with # or ; on a line of its own or behind one of the first two
//
// It stays with lines: none has to be known to understand another one, but for the heading and the names of ipset's sets.
type parser struct {
	hostBits HostBits
	most     int // entries
	builder  Builder
	report   Report
	heading  *BadLine  // a line that is no entry, and makes sense only where entries follow
	sets     [2]string // the names of ipset's sets, of IPv4 and of IPv6
	ranges   bool      // there are ranges
}

// line takes one line, without the blanks around it. Its error means that the whole list can't be used.
func (p *parser) line(number int, line []byte) error {
	if len(line) == 0 || line[0] == '#' || line[0] == ';' {
		return nil
	}
	var err error
	switch {
	case line[0] == '{':
		err = p.object(number, line)
	case isCommand(line):
		err = p.command(number, string(line))
	default:
		err = p.columns(number, string(line))
	}
	if err != nil {
		if errors.As(err, new(refusedError)) {
			return fmt.Errorf("line %d: %w", number, err)
		}
		p.report.Lines++
		p.report.bad(number, err)
	}
	if p.report.Lines > p.most {
		return ErrTooMany
	}
	return nil
}

// refusedError is an error for which a list is refused as a whole.
type refusedError struct{ error }

// finish returns the set, unless this was no list.
func (p *parser) finish() (*Set, Report, error) {
	if p.report.Lines == 0 && p.heading != nil {
		p.report.Lines++
		p.report.bad(p.heading.Number, p.heading.Err)
	}
	if p.report.Bad*2 > p.report.Lines {
		return nil, p.report, fmt.Errorf("%d of %d lines are bad, expected a list of addresses and prefixes: %w",
			p.report.Bad, p.report.Lines, p.report.First[0])
	}
	if p.ranges && p.builder.hasExceptions() {
		return nil, p.report, errors.New("expected no ranges in a list with nomatch")
	}
	return p.builder.Set(), p.report, nil
}

// add adds what an entry of a line stands for.
func (p *parser) add(number int, text string) error {
	r, masked, err := p.parse(text)
	if err != nil {
		return err
	}
	p.good(number, masked)
	p.builder.Add(r)
	return nil
}

func (p *parser) good(number int, masked error) {
	p.report.Lines++
	if masked != nil {
		p.report.masked(number, masked)
	}
}

// parse reads an entry. masked is not nil if it has bits set behind the prefix, and stands for its network.
func (p *parser) parse(text string) (r Range, masked, err error) {
	if address, mask, ok := strings.Cut(text, "/"); ok && strings.Contains(mask, ".") {
		length, ok := maskLength(mask)
		if !ok || !isIPv4(address) {
			return r, nil, fmt.Errorf("%s: expected a netmask such as 255.255.255.0", quote(text))
		}
		text = address + "/" + strconv.Itoa(length)
	}
	r, err = Parse(text)
	if hostBits := (*hostBitsError)(nil); errors.As(err, &hostBits) && p.hostBits == MaskHostBits {
		// Where the prefix of a mapped address is shorter than /96, its network has no IPv4 address any more.
		if !hostBits.prefix.Addr().Is4In6() {
			return Of(hostBits.prefix.Masked()), err, nil
		}
	}
	if err == nil && strings.Contains(text, "-") {
		p.ranges = true
	}
	return r, nil, err
}

// maskLength returns the number of ones that a netmask begins with.
func maskLength(mask string) (length int, ok bool) {
	addr, err := netip.ParseAddr(mask)
	if err != nil || !addr.Is4() {
		return 0, false
	}
	number := number4(addr)
	length = bits.LeadingZeros32(^number)
	return length, uint64(number)<<length&0xffff_ffff == 0
}

func isIPv4(address string) bool {
	addr, err := netip.ParseAddr(address)
	return err == nil && addr.Is4()
}

var (
	errRemark = errors.New("expected nothing behind the entry but further columns (comma, semicolon, tab) or a comment (#)")
	errHosts  = errors.New("expected a list of addresses, not of the names of hosts")
	errTwo    = errors.New("expected one address in a line, an address and its netmask, or a range with -")
	errQuote  = errors.New("expected a closing quote")
)

// columns takes a line whose first column is the entry.
func (p *parser) columns(number int, line string) error {
	if p.report.Lines == 0 && p.heading == nil && namesColumns(line) {
		p.heading = &BadLine{number, fmt.Errorf("%s: %w", quote(line), errForm)}
		return nil
	}
	entry := line
	if comment := strings.IndexAny(line, "#;"); comment >= 0 {
		entry = strings.TrimSpace(line[:comment])
	}
	first, rest, separator, err := column(entry)
	if err == nil && separator != ',' && separator != 0 && (strings.HasPrefix(rest, "-") || strings.HasSuffix(first, "-")) {
		first, rest, separator, err = blankRange(first, rest)
	}
	if err == nil && separator != 0 {
		entry, err = further(first, rest, separator)
		if _, _, failed := p.parse(first); err != nil && errors.Is(failed, errForm) {
			err = errForm // which says more
		}
		first = entry
	}
	if err != nil {
		return fmt.Errorf("%s: %w", quote(line), err)
	}
	return p.add(number, first)
}

// column cuts the first column off. separator is ',' or '\t', or ' ' where there are only blanks between it and the rest; 0 if
// nothing follows.
func column(line string) (first, rest string, separator byte, err error) {
	if line != "" && (line[0] == '"' || line[0] == '\'') {
		end := strings.IndexByte(line[1:], line[0])
		if end < 0 {
			return "", "", 0, errQuote
		}
		first, rest = strings.TrimSpace(line[1:1+end]), line[2+end:]
	} else if end := strings.IndexAny(line, ", \t"); end >= 0 {
		first, rest = line[:end], line[end:]
	} else {
		return line, "", 0, nil
	}
	trimmed := strings.TrimLeft(rest, " \t")
	switch {
	case strings.HasPrefix(trimmed, ","):
		return first, strings.TrimLeft(trimmed[1:], " \t"), ',', nil
	case trimmed == "":
		return first, "", 0, nil
	case strings.Contains(rest[:len(rest)-len(trimmed)], "\t"):
		return first, trimmed, '\t', nil
	default:
		return first, trimmed, ' ', nil
	}
}

// blankRange puts a range together that is written with blanks around its dash.
func blankRange(first, rest string) (whole, behind string, separator byte, err error) {
	last, behind, separator, err := column(strings.TrimLeft(strings.TrimPrefix(rest, "-"), " \t"))
	return strings.TrimSuffix(first, "-") + "-" + last, behind, separator, err
}

// further judges what stands behind the first column, and returns the entry that they make together. Where the second one
// could change what the first one means, the line is not understood.
func further(first, rest string, separator byte) (entry string, err error) {
	second, _, _, err := column(rest)
	if err != nil {
		second = ""
	}
	if _, err := netip.ParseAddr(second); err == nil {
		if _, ok := maskLength(second); ok && isIPv4(first) {
			return first + "/" + second, nil
		}
		return "", errTwo
	}
	if separator == ',' {
		return first, nil
	}
	if addr, err := netip.ParseAddr(first); err == nil && (addr.IsUnspecified() || addr.IsLoopback()) {
		return "", errHosts
	}
	if separator == ' ' {
		return "", errRemark
	}
	return first, nil
}

// namesColumns tells whether a line names columns: a word, and others behind it, or a word that stands for addresses.
func namesColumns(line string) bool {
	name, more := line, false
	if end := strings.IndexAny(line, ",;\t"); end >= 0 {
		name, more = line[:end], true
	}
	name = strings.ToLower(strings.Trim(name, `"' `))
	strange := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_- ", r)
	}
	if name == "" || name[0] < 'a' || name[0] > 'z' || strings.ContainsFunc(name, strange) {
		return false
	}
	return more || slices.Contains([]string{"ip", "ip_address", "ipaddress", "address", "cidr", "network", "prefix", "range", "subnet"}, name)
}

var errObject = errors.New("expected an object with one of cidr, prefix, ip and address")

// object takes a line of JSON, as Spamhaus writes them.
func (p *parser) object(number int, line []byte) error {
	var object struct{ Type, CIDR, Prefix, IP, Address string }
	failed := json.Unmarshal(line, &object) != nil
	if !failed && object.Type == "metadata" {
		if p.heading == nil {
			p.heading = &BadLine{number, fmt.Errorf("%s: %w", quote(string(line)), errObject)}
		}
		return nil
	}
	given := slices.DeleteFunc([]string{object.CIDR, object.Prefix, object.IP, object.Address}, func(s string) bool { return s == "" })
	if failed || len(given) != 1 {
		return fmt.Errorf("%s: %w", quote(string(line)), errObject)
	}
	return p.add(number, given[0])
}

// isCommand tells whether a line is one of those that ipset save writes. Others would change the meaning of lines before.
func isCommand(line []byte) bool {
	for _, name := range []string{"add", "create", "-A", "-N"} {
		if len(line) > len(name) && string(line[:len(name)]) == name && (line[len(name)] == ' ' || line[len(name)] == '\t') {
			return true
		}
	}
	return false
}

var errCommand = errors.New("expected add <set> <address or prefix>, as ipset save writes it")

// command takes a line of what ipset save writes. Whatever it says about an entry beside nomatch is not taken: a time to live
// counts from when ipset would read it.
func (p *parser) command(number int, line string) error {
	words, ok := quotedWords(line)
	if words[0] == "create" || words[0] == "-N" {
		return nil
	}
	except := len(words) > 3 && slices.Contains(words[3:], "nomatch")
	if !ok || len(words) < 3 || strings.Contains(words[2], "-") {
		return refusedIf(except, fmt.Errorf("%s: %w", quote(line), errCommand))
	}
	r, masked, err := p.parse(words[2])
	if err == nil && except {
		err = masked // its network would be a larger exception
	}
	if err != nil {
		return refusedIf(except, err)
	}
	family := 0
	if r.First.Is6() {
		family = 1
	}
	if p.sets[family] == "" {
		p.sets[family] = words[1]
	}
	if p.sets[family] != words[1] {
		return refusedError{fmt.Errorf("set %s: expected only one set of a family, there is %s already", quote(words[1]), quote(p.sets[family]))}
	}
	p.good(number, masked)
	if except {
		p.builder.Except(r)
	} else {
		p.builder.Add(r)
	}
	return nil
}

// refusedIf is an error for which the list is refused where the line has an exception: a list without it would have more addresses
// than its author wants, and nobody knows which.
func refusedIf(except bool, err error) error {
	if except {
		return refusedError{err}
	}
	return err
}

// quotedWords returns the words of a line, one in quotes as an empty one. It reports false if a quote is not closed.
func quotedWords(line string) (words []string, ok bool) {
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 0 {
			words = append(words, strings.Fields(part)...)
		} else {
			words = append(words, "")
		}
	}
	return words, strings.Count(line, `"`)%2 == 0
}
