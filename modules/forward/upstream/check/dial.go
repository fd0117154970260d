package check

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
)

// dialers make exchanges in a goroutine each: those with TLS, and all where there is no event loop.
type dialers struct {
	running sync.WaitGroup
	mu      sync.Mutex
	open    map[*exchange]context.CancelFunc // nil once they are closed
}

func newDialers() *dialers { return &dialers{open: make(map[*exchange]context.CancelFunc)} }

func (*dialers) serves(*exchange) bool { return true }

// begin begins exchanges, as loop.begin does.
func (d *dialers) begin(all ...*exchange) {
	for _, x := range all {
		d.beginOne(x)
	}
}

func (d *dialers) beginOne(x *exchange) {
	ctx, cancel := context.WithCancel(context.Background())
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == nil || x.cancelled.Load() {
		cancel()
		return
	}
	d.open[x] = cancel
	d.running.Go(func() {
		err := x.dial(ctx)
		d.mu.Lock()
		_, waited := d.open[x]
		delete(d.open, x)
		d.mu.Unlock()
		cancel()
		if waited {
			x.over(err)
		}
	})
}

// cancel ends an exchange whose result nobody waits for any more.
func (d *dialers) cancel(x *exchange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel := d.open[x]; cancel != nil {
		delete(d.open, x)
		cancel()
	}
}

// close ends all exchanges, without results.
func (d *dialers) close() {
	d.mu.Lock()
	for _, cancel := range d.open {
		cancel()
	}
	d.open = nil
	d.mu.Unlock()
	d.running.Wait()
}

// dial makes the exchange, until ctx ends.
func (x *exchange) dial(ctx context.Context) error {
	var dialer net.Dialer
	if x.source.IsValid() {
		switch x.addr.(type) {
		case *net.UDPAddr:
			dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(x.source, 0))
		case *net.TCPAddr:
			dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(x.source, 0))
		}
	}
	conn, err := dialer.DialContext(ctx, x.addr.Network(), x.addr.String())
	if err != nil {
		return plain(err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close()
	if x.tls != nil {
		if len(x.preface) > 0 {
			if _, err := conn.Write(x.preface); err != nil {
				return plain(err)
			}
		}
		cfg := x.tls()
		if x.protos != nil {
			cfg = cfg.Clone()
			cfg.NextProtos = x.protos
		}
		secure := tls.Client(conn, cfg)
		if err := secure.HandshakeContext(ctx); err != nil {
			return plain(err)
		}
		conn = secure
		defer conn.Close()
	}
	return x.talk(conn)
}

// talk sends the request, and reads until the reply is judged.
func (x *exchange) talk(conn net.Conn) error {
	_, datagrams := x.addr.(*net.UDPAddr)
	if x.judge == nil {
		return nil
	}
	if len(x.request) > 0 || datagrams {
		if _, err := conn.Write(x.request); err != nil {
			return plain(err)
		}
	}
	var reply []byte
	for buffer := make([]byte, maxReply); ; {
		n, err := conn.Read(buffer)
		ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) && len(reply)+n > 0
		if err != nil && !ended {
			return plain(err)
		}
		if datagrams {
			reply = buffer[:n]
		} else {
			reply = append(reply, buffer[:n]...)
		}
		if done, err := x.judge(reply, ended); done || ended {
			return err
		}
	}
}

// plain returns an error of package net without the addresses, which whoever logs it has.
func plain(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call
	}
	return err
}

// isLocal reports whether a check could not be made because of this system: nothing is known of the upstream then.
func isLocal(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN:
		return true
	}
	return false
}
