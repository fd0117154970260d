//go:build !linux

package network

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// maxDatagram is more than UDP has room for, so that no datagram is cut.
const maxDatagram = 1 << 16

// packetListener is a UDP socket. It does not tell which address a datagram was sent to.
type packetListener struct {
	conn   *net.UDPConn
	addr   *net.UDPAddr
	buffer [maxDatagram]byte
}

func listenPackets(ctx context.Context, cfg net.ListenConfig, ep endpoint) (*packetListener, error) {
	conn, err := ep.listenPacket(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &packetListener{conn: conn, addr: conn.LocalAddr().(*net.UDPAddr)}, nil
}

func (l *packetListener) Addr() net.Addr { return l.addr }

// interrupt ends receive, now and for ever.
func (l *packetListener) interrupt() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) }

// receive waits for a datagram and delivers it. It is not for concurrent use.
func (l *packetListener) receive(deliver func(f *fiveTuple, b []byte, truncated bool)) error {
	n, client, err := l.conn.ReadFromUDPAddrPort(l.buffer[:])
	if err != nil {
		return err
	}
	f := fiveTuple{client: client.Addr().As16(), port: uint32(client.Port()), zone: zoneIndex(client.Addr().Zone())}
	deliver(&f, l.buffer[:n], false)
	return nil
}

func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// replyPath is where the replies of a session go.
type replyPath struct{ client netip.AddrPort }

func (l *packetListener) replyPath(f *fiveTuple) replyPath {
	client := f.remoteAddr().AddrPort()
	return replyPath{netip.AddrPortFrom(client.Addr().Unmap(), client.Port())}
}

// send reports whether the socket took the datagram.
func (l *packetListener) send(p *replyPath, b []byte) (sent bool, err error) {
	_, err = l.conn.WriteToUDPAddrPort(b, p.client)
	return err == nil, err
}

// leave makes the address free.
func (l *packetListener) leave() error { return l.conn.Close() }

// close is called when no session sends any more.
func (l *packetListener) close() {}
