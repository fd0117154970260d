// Package listeners tells which listener accepted a connection, whatever handlers have wrapped around it since, and keeps
// the counters of a listener.
package listeners

import (
	"net"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/mholt/caddy-l4/layer4"
)

// configured is a connection that knows the address of its listener as the config has it.
type configured interface{ ListenerAddr() string }

// Proxied is a connection of a load balancer, with the addresses of the connection that it passes on. Its bytes are those
// of Conn, so whoever moves them may take Conn instead.
type Proxied struct {
	net.Conn
	Client, Local net.Addr
}

// RemoteAddr returns the address of the client.
func (p *Proxied) RemoteAddr() net.Addr { return p.Client }

// LocalAddr returns the address that the client has connected to.
func (p *Proxied) LocalAddr() net.Addr { return p.Local }

// Accepted returns the connection as its listener accepted it, without what handlers have wrapped around it since. What
// a wrapper says of the local address may be the client's word, as behind a PROXY header.
func Accepted(cx *layer4.Connection) net.Conn {
	for conn := net.Conn(cx); ; {
		inner := Unwrap(conn)
		if _, ok := conn.(configured); ok || inner == nil {
			return conn
		}
		conn = inner
	}
}

// Unwrap returns the connection that conn wraps, nil where none can be found. It asks the methods that crypto/tls and
// go-proxyproto have for it, and else takes the field of a struct that embeds a net.Conn.
func Unwrap(conn net.Conn) net.Conn {
	v := reflect.ValueOf(conn)
	if v.Kind() == reflect.Pointer && v.IsNil() {
		return nil
	}
	switch c := conn.(type) {
	case *layer4.Connection:
		return c.Conn
	case *Proxied:
		return c.Conn
	case interface{ NetConn() net.Conn }:
		return c.NetConn()
	case interface{ Raw() net.Conn }:
		return c.Raw()
	}
	v = reflect.Indirect(v)
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

// Of returns the network and the address of the listener that accepted cx: the address as configured where the network
// tells it, else ":port". Only what a config can contain may become a metrics label, so an address that depends on what
// the client connected to is left out.
func Of(cx *layer4.Connection) (network, address string) {
	conn := Accepted(cx)
	local := conn.LocalAddr()
	if c, ok := conn.(configured); ok {
		return local.Network(), c.ListenerAddr()
	}
	if ap := AddrPort(local); ap.IsValid() {
		return local.Network(), ":" + strconv.Itoa(int(ap.Port()))
	}
	return local.Network(), local.String()
}

// AddrPort returns the address of a TCP or UDP connection, unmapped, and the zero value for others.
func AddrPort(addr net.Addr) netip.AddrPort {
	if a, ok := addr.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
