package caddyfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
)

// UnmarshalJSON decodes a JSON object into the struct that v points to, as encoding/json does. It refuses unknown names and negative
// durations, and its errors name the option. It does not look into embedded structs.
//
// A module calls it from its own UnmarshalJSON. If the type of a field has such a method too, its errors are returned with the name of
// the outer option in front.
func UnmarshalJSON(data []byte, v any) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		return errExpected(plain(data), "an object")
	}
	into := reflect.ValueOf(v).Elem()
	fields := fieldsOf(into.Type())
	for _, name := range slices.Sorted(maps.Keys(object)) {
		field, known := fields.byName[name]
		if !known {
			return errUnknown(name, fields.names)
		}
		if err := field.unmarshal(object[name], into.Field(field.index)); err != nil {
			return WithoutPasswords(fmt.Errorf("%s: %w", name, err))
		}
	}
	return nil
}

// fields are those of a struct that have a name in JSON.
type fields struct {
	names  []string // in the struct's order
	byName map[string]field
}

type field struct {
	index   int
	structs bool // there may be unknown names in its JSON
}

// known has the fields of each type that was decoded: thousands of handlers are of a few types.
var known sync.Map

func fieldsOf(object reflect.Type) *fields {
	if f, ok := known.Load(object); ok {
		return f.(*fields)
	}
	f := &fields{byName: make(map[string]field)}
	for i := range object.NumField() {
		name, _, _ := strings.Cut(object.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		f.byName[name] = field{i, hasStructs(object.Field(i).Type)}
		f.names = append(f.names, name)
	}
	known.Store(object, f)
	return f
}

// hasStructs reports whether encoding/json itself may decode a struct for a value of this type.
func hasStructs(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return false // refuses what it does not know
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return false
	case reflect.Array, reflect.Map, reflect.Pointer, reflect.Slice:
		return hasStructs(t.Elem())
	default:
		return true
	}
}

func (f field) unmarshal(data []byte, to reflect.Value) error {
	err := f.decode(data, to.Addr().Interface())
	if value := reflect.Indirect(to); value.IsValid() && value.Type() == reflect.TypeFor[caddy.Duration]() {
		if err != nil {
			return errDuration(plain(data))
		}
		if value.Int() < 0 {
			return errNegative(plain(data))
		}
	}
	if mismatch := (*json.UnmarshalTypeError)(nil); errors.As(err, &mismatch) {
		return errExpected(plain(data), expectation(to.Type()))
	}
	return err
}

// decode takes a decoder, which has a buffer of its own, only where that refuses more.
func (f field) decode(data []byte, to any) error {
	if !f.structs {
		return json.Unmarshal(data, to)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	return decoder.Decode(to)
}

// plain returns a JSON string without its quotes, and any other JSON value as it is.
func plain(data []byte) string {
	var s string
	if json.Unmarshal(data, &s) == nil {
		return s
	}
	return string(data)
}

func expectation(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number of 0 or more"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.String {
			return "a list of strings"
		}
		return "a list"
	case reflect.Pointer:
		return expectation(t.Elem())
	default:
		return "an object"
	}
}

// CanonicalJSON returns the same string for documents that differ only in layout and in the order of the fields of objects.
func CanonicalJSON(data []byte) (string, error) {
	var document any
	if err := json.Unmarshal(data, &document); err != nil {
		return "", err
	}
	canonical, err := json.Marshal(document)
	return string(canonical), err
}
