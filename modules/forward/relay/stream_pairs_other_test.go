//go:build !linux

package relay

var loopPairs []pair
