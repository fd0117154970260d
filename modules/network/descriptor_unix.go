//go:build unix

package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// inheritListener returns a listener on a copy of a descriptor. The descriptor itself stays open, and with it the socket: what
// arrives while no config has it waits for one that has.
func inheritListener(fd int, control func(network, address string, conn syscall.RawConn) error) (*net.TCPListener, error) {
	file, err := copyDescriptor(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if listening, err := unix.GetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening == 0 {
		return nil, fmt.Errorf("descriptor %d: expected a listening socket, such as systemd opens for ListenStream=", fd)
	}
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(notOf(fd, ln.Addr(), "tcp", "fd"), ln.Close())
	}
	if err := runControl(tcp, tcp.Addr(), control); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return tcp, nil
}

// inheritPacketConn is inheritListener for datagrams.
func inheritPacketConn(fd int, control func(network, address string, conn syscall.RawConn) error) (*net.UDPConn, error) {
	file, err := copyDescriptor(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: expected a socket of datagrams, such as systemd opens for ListenDatagram=: %w", fd, err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(notOf(fd, conn.LocalAddr(), "udp", "fdgram"), conn.Close())
	}
	if err := runControl(udp, udp.LocalAddr(), control); err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	return udp, nil
}

func notOf(fd int, addr net.Addr, transport, other string) error {
	return fmt.Errorf("descriptor %d has a socket of the network %q: expected %s, or the listen address %s/%[1]d", fd, addr.Network(), transport, other)
}

func copyDescriptor(fd int) (*os.File, error) {
	duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w: expected one that the process was started with", fd, err)
	}
	return os.NewFile(uintptr(duplicate), "inherited"), nil
}

// runControl does what package net does before it binds a socket.
func runControl(socket syscall.Conn, addr net.Addr, control func(network, address string, conn syscall.RawConn) error) error {
	if control == nil {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	return control(addr.Network(), addr.String(), raw)
}
