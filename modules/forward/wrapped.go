package forward

import (
	"net"
	"reflect"
)

// wrapped returns the connection that conn wraps, nil where none can be found: by the methods that crypto/tls and
// go-proxyproto have for it, else the embedded net.Conn of a struct.
func wrapped(conn net.Conn) net.Conn {
	switch c := conn.(type) {
	case interface{ NetConn() net.Conn }:
		return c.NetConn()
	case interface{ Raw() net.Conn }:
		return c.Raw()
	}
	v := reflect.Indirect(reflect.ValueOf(conn))
	if v.Kind() != reflect.Struct {
		return nil
	}
	field, ok := v.Type().FieldByName("Conn")
	if !ok || !field.Anonymous {
		return nil
	}
	value, err := v.FieldByIndexErr(field.Index)
	if err != nil {
		return nil // behind a nil pointer
	}
	inner, _ := value.Interface().(net.Conn)
	return inner
}
