//go:build !linux

package relay

var loopPacketPairs []packetPair
