//go:build !linux

package network

import (
	"errors"
	"syscall"
)

// Other systems don't let a socket that is bound share its port.
func sharePort(syscall.RawConn, bool) error { return errors.ErrUnsupported }

func (*listener) sharePort(bool) error { return errors.ErrUnsupported }
func (*listener) hide() bool           { return false }
func (*listener) acceptWaiting() *Conn { return nil }

func (*packetListener) sharePort(bool) error { return errors.ErrUnsupported }
func (*packetListener) hide() bool           { return false }
func (*packetListener) isEmpty() bool        { return true }
