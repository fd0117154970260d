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
	fields, names := jsonFields(reflect.ValueOf(v).Elem())
	for _, name := range slices.Sorted(maps.Keys(object)) {
		field, known := fields[name]
		if !known {
			return errUnknown(name, names)
		}
		if err := unmarshalField(object[name], field); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// UnmarshalCanonical is [UnmarshalJSON], and returns the [CanonicalJSON] of what was decoded, by which a module can find itself in its config.
func UnmarshalCanonical(data []byte, v any) (canonical string, err error) {
	if err := UnmarshalJSON(data, v); err != nil {
		return "", err
	}
	return CanonicalJSON(data)
}

// jsonFields returns the fields of a struct by their names in JSON, and these names in the struct's order.
func jsonFields(object reflect.Value) (fields map[string]reflect.Value, names []string) {
	fields = make(map[string]reflect.Value)
	for i := range object.NumField() {
		name, _, _ := strings.Cut(object.Type().Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		fields[name] = object.Field(i)
		names = append(names, name)
	}
	return fields, names
}

func unmarshalField(data []byte, field reflect.Value) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(field.Addr().Interface())

	if value := reflect.Indirect(field); value.IsValid() && value.Type() == reflect.TypeFor[caddy.Duration]() {
		if err != nil {
			return errDuration(plain(data))
		}
		if value.Int() < 0 {
			return errNegative(plain(data))
		}
	}
	if mismatch := (*json.UnmarshalTypeError)(nil); errors.As(err, &mismatch) {
		return errExpected(plain(data), expectation(field.Type()))
	}
	return err
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

// CanonicalJSON returns the same string for objects that differ only in layout, in the order of their fields, and in the fields that
// leaveOut names.
func CanonicalJSON(data []byte, leaveOut ...string) (string, error) {
	var document any
	if err := json.Unmarshal(data, &document); err != nil {
		return "", err
	}
	if object, ok := document.(map[string]any); ok {
		for _, name := range leaveOut {
			delete(object, name)
		}
	}
	canonical, err := json.Marshal(document)
	return string(canonical), err
}
