package acl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// decodeEntries reads what storeEntries has written, or the entries alone.
func decodeEntries(value []byte, entries map[netip.Prefix]entry) (through int64, err error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	if bytes.HasPrefix(value, []byte{'{'}) {
		var head snapshotHead
		if err := decoder.Decode(&head); err != nil {
			return 0, cutShort(err)
		}
		through = head.Through
	}
	return through, decodeEach(decoder, "entry", func(e *entry) error {
		if err := checkStored(e.Prefix); err != nil {
			return err
		}
		entries[e.Prefix] = *e
		return nil
	})
}

// decodeEdits reads the lines of a segment that stand behind others. What comes before an error is returned too.
func decodeEdits(value []byte, before int) (edits []edit, err error) {
	n := before
	for line := range bytes.Lines(value) {
		n++
		e, err := decodeEdit(line)
		if err != nil {
			return edits, fmt.Errorf("edit %d: %w", n, err)
		}
		edits = append(edits, e)
	}
	return edits, nil
}

func decodeEdit(line []byte) (edit, error) {
	if !bytes.HasSuffix(line, []byte{'\n'}) {
		return edit{}, errTooEarly
	}
	var e edit
	if err := json.Unmarshal(line, &e); err != nil {
		return edit{}, err
	}
	var err error
	switch {
	case e.Set != nil && e.Remove == nil && e.All == nil && !e.End:
		err = checkStored(e.Set.Prefix)
	case e.Set == nil && e.Remove != nil && e.All == nil && !e.End:
		err = checkStored(*e.Remove)
	case e.Set == nil && e.Remove == nil && e.All != nil && !e.End:
		for i := range *e.All {
			if err = checkStored((*e.All)[i].Prefix); err != nil {
				err = fmt.Errorf("entry %d: %w", i+1, err)
				break
			}
		}
	case e.Set == nil && e.Remove == nil && e.All == nil && e.End:
	default:
		err = errors.New(`expected one of "set", "remove", "all" and "end"`)
	}
	return e, err
}

// apply makes the edit.
func (e *edit) apply(entries map[netip.Prefix]entry) {
	switch {
	case e.Set != nil:
		entries[e.Set.Prefix] = *e.Set
	case e.Remove != nil:
		delete(entries, *e.Remove)
	case e.All != nil:
		clear(entries)
		for _, one := range *e.All {
			entries[one.Prefix] = one
		}
	}
}

// decodeEach reads a JSON array value by value, so that an error says at which one it is.
func decodeEach[T any](decoder *json.Decoder, noun string, each func(*T) error) error {
	if token, err := decoder.Token(); err != nil {
		return cutShort(err)
	} else if token != json.Delim('[') {
		return fmt.Errorf("%q: expected a list", fmt.Sprint(token))
	}
	n := 1
	for ; decoder.More(); n++ {
		var value *T
		err := cutShort(decoder.Decode(&value))
		if err == nil && value == nil {
			err = errors.New(`"null": expected an object`)
		}
		if err == nil {
			err = each(value)
		}
		if err != nil {
			return fmt.Errorf("%s %d: %w", noun, n, err)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return fmt.Errorf("%s %d: %w", noun, n, cutShort(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("expected nothing behind the list of %d", n-1)
	}
	return nil
}

var errTooEarly = errors.New("it ends too early")

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTooEarly
	}
	return err
}

// checkStored refuses a prefix that no list can have: an edit would not find it again.
func checkStored(prefix netip.Prefix) error {
	if !prefix.IsValid() {
		return errors.New(`prefix: "": expected an address or a prefix`)
	}
	canonical, err := ipset.ParsePrefix(prefix.String())
	if err == nil && canonical != prefix {
		err = fmt.Errorf("%q: expected %s", prefix, canonical)
	}
	if err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	return nil
}
