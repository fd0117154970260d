//go:build !linux

package network

import "net"

// inherit leaves it to package net to set the options on each accepted connection.
func inherit(cfg net.ListenConfig) net.ListenConfig { return cfg }
