package main

// kind is what the connections of a workload do once they are open.
type kind int

const (
	exchanges kind = iota // a message, its echo, the next message
	bulkUp                // the client sends, the backend discards
	bulkDown              // the backend sends, the client discards
	closes                // one byte and its echo, the backend closes, then the client does, and opens the next one
	resets                // the same, but the client ends it with a reset
	idle                  // nothing
)

// churns says whether connections come and go.
func (k kind) churns() bool { return k == closes || k == resets }

// workload is one row of the tables.
type workload struct {
	name        string
	kind        kind
	connections int // at the same time
}

const exchangeBytes = 64

// workloads returns the rows in the order in which they run and are shown.
func workloads(idleSessions int) []workload {
	return []workload{
		{"bulk up, 4 connections", bulkUp, 4},
		{"bulk down, 4 connections", bulkDown, 4},
		{"64-byte exchanges, 1 connection", exchanges, 1},
		{"64-byte exchanges, 4 connections", exchanges, 4},
		{"64-byte exchanges, 64 connections", exchanges, 64},
		{"64-byte exchanges, 1,000 connections", exchanges, 1000},
		{"connect, 1 byte, close", closes, 32},
		{"connect, 1 byte, reset", resets, 32},
		{whole(float64(idleSessions)) + " idle sessions", idle, idleSessions},
	}
}

// sweepPoints are the numbers of connections in the plot.
var sweepPoints = []int{1, 4, 16, 64, 256, 1000, 2000, 4000, 8000}

// mode is what the backend is asked for.
func (w workload) mode() byte {
	switch w.kind {
	case bulkUp:
		return modeSink
	case bulkDown:
		return modeSource
	case closes:
		return modeOnce
	default:
		return modeEcho
	}
}

// messageBytes is the size of a connection's first message, of what comes back for it, and of each exchange.
func (w workload) messageBytes() int {
	switch w.kind {
	case exchanges, idle:
		return exchangeBytes
	default:
		return 1
	}
}

// least is what has to happen for a round to tell something: two exchanges for each connection, so that all had their turn.
func (w workload) least() int64 {
	if w.kind == exchanges {
		return int64(2 * w.connections)
	}
	return 1
}
