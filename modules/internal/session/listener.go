package session

import (
	"net"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/mholt/caddy-l4/layer4"
)

// configured is a connection that knows the address of its listener as the config has it.
type configured interface{ ListenerAddr() string }

// Accepted returns the connection as its listener gave it, without what handlers have wrapped around it
// since. What they say of its local address may be the client's word, as behind a PROXY header.
func Accepted(cx *layer4.Connection) net.Conn {
	for conn := net.Conn(cx); ; {
		inner := wrapped(conn)
		if _, ok := conn.(configured); ok || inner == nil {
			return conn
		}
		conn = inner
	}
}

// wrapped returns the connection that conn wraps, nil where none can be found: by the methods that
// crypto/tls and go-proxyproto have for it, else the field of a struct that embeds a net.Conn.
func wrapped(conn net.Conn) net.Conn {
	switch c := conn.(type) {
	case *layer4.Connection:
		return c.Conn
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

// listener tells where cx was accepted. Only what a config can contain may become a label, so a
// network that does not tell its configured address is known by the port alone.
func listener(cx *layer4.Connection) (network, address string) {
	conn := Accepted(cx)
	local := conn.LocalAddr()
	if c, ok := conn.(configured); ok {
		return local.Network(), c.ListenerAddr()
	}
	if ap := addrPort(local); ap.IsValid() {
		return local.Network(), ":" + strconv.Itoa(int(ap.Port()))
	}
	return local.Network(), local.String()
}

func addrPort(addr net.Addr) netip.AddrPort {
	if a, ok := addr.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
