package logqueue

import (
	"io"
	"reflect"

	"go.uber.org/zap/zapcore"
)

// destination is the address of what a log is written to, such as the *os.File of stdout. Each config has cores of its
// own, but Caddy opens what they write to once. While a queue has an entry for it, it can't be freed, so its address is
// no other's.
type destination struct {
	address uintptr
	lines   bool // what a [Writer] has accepted, not the entries that are still to be written to it
}

// destinationOf looks into the cores of zap and the wrappers that Caddy puts around a writer. Where that fails because they have
// changed, each core is a destination of its own, as a test of this package would show.
func destinationOf(core zapcore.Core) destination {
	var found destination
	for v := reflect.ValueOf(core); v.IsValid(); v = within(v) {
		if v.Kind() == reflect.Pointer && v.Pointer() != 0 {
			found.address = v.Pointer()
		}
	}
	return found
}

var (
	writerType = reflect.TypeFor[io.Writer]()
	coreType   = reflect.TypeFor[zapcore.Core]()
)

// within returns what v wraps, the zero value where that is nothing.
func within(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Interface:
		return v.Elem()
	case reflect.Pointer:
		if v.Elem().Kind() == reflect.Struct {
			return wrapped(v.Elem())
		}
	case reflect.Struct:
		return wrapped(v)
	case reflect.Slice: // of cores that get the same entries
		if v.Type().Elem() == coreType && v.Len() > 0 {
			return v.Index(0)
		}
	}
	return reflect.Value{}
}

// wrapped returns the core or the writer in a struct of zap or Caddy itself. Writers that are modules are what is looked for.
func wrapped(v reflect.Value) reflect.Value {
	switch v.Type().PkgPath() {
	case "go.uber.org/zap/zapcore", "github.com/caddyserver/caddy/v2":
	default:
		return reflect.Value{}
	}
	for i := range v.NumField() {
		if field := v.Field(i); field.Kind() == reflect.Interface && (field.Type().Implements(writerType) || field.Type().Implements(coreType)) {
			return field
		}
	}
	return reflect.Value{}
}

// parts returns the cores that a logger of several logs writes to.
func parts(core zapcore.Core) []zapcore.Core {
	v := reflect.ValueOf(core)
	if v.Kind() != reflect.Slice || v.Type().Elem() != coreType {
		return []zapcore.Core{core}
	}
	all := make([]zapcore.Core, v.Len())
	for i := range all {
		all[i] = v.Index(i).Interface().(zapcore.Core)
	}
	return all
}
