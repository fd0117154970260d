//go:build !linux

package network

import "net"

// inheritKeepAlive leaves it to package net to set the keep-alive options on each accepted connection.
func inheritKeepAlive(cfg net.ListenConfig) net.ListenConfig { return cfg }
