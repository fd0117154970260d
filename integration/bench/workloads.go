package main

// kind is what the connections of a workload, or its UDP sessions, do once they are open.
type kind int

const (
	exchanges kind = iota // a message, its echo, the next message
	bulkUp                // the client sends, the backend discards
	bulkDown              // the backend sends, the client discards
	closes                // one byte and its echo, the backend closes, then the client does, and opens the next one
	resets                // the same, but the client ends it with a reset
	logged                // the same as closes, and the proxy writes an entry of it to a file
	denied                // the client connects, the proxy ends it because of the client's address
	limited               // the same, because the client connects too often
	idle                  // nothing
	flood                 // the client sends datagrams as fast as it can, the backend counts those that arrive
	paced                 // the same, at a rate that every proxy can keep up with
)

// churns says whether connections come and go.
func (k kind) churns() bool { return k == closes || k == resets || k == logged || k.refused() }

// refused says whether the proxy lets nobody in. Such work goes to a listener of its own.
func (k kind) refused() bool { return k == denied || k == limited }

// oneWay says whether datagrams are counted where they arrive.
func (k kind) oneWay() bool { return k == flood || k == paced }

// timed says whether there is a duration of each operation.
func (k kind) timed() bool { return k == exchanges || k.churns() }

// The networks, as package net names them.
const (
	tcp = "tcp"
	udp = "udp"
)

// workload is one row of the tables.
type workload struct {
	name        string
	network     string
	kind        kind
	connections int // at the same time
}

const (
	exchangeBytes = 64
	oneWayBytes   = 200

	// pacedPerSecond takes a proxy less than a processor, so that what one datagram costs shows also where it wakes somebody.
	pacedPerSecond = 50_000
)

// workloads returns the rows in the order in which they run and are shown.
func workloads(idleSessions int) []workload {
	return []workload{
		{"bulk up, 4 connections", tcp, bulkUp, 4},
		{"bulk down, 4 connections", tcp, bulkDown, 4},
		{"64-byte exchanges, 1 connection", tcp, exchanges, 1},
		{"64-byte exchanges, 4 connections", tcp, exchanges, 4},
		{"64-byte exchanges, 64 connections", tcp, exchanges, 64},
		{"64-byte exchanges, 1,000 connections", tcp, exchanges, 1000},
		{"connect, 1 byte, close", tcp, closes, 32},
		{"connect, 1 byte, reset", tcp, resets, 32},
		{"connect, 1 byte, close, logged", tcp, logged, 32},
		{"connect, denied by address", tcp, denied, 32},
		{"connect, denied by rate", tcp, limited, 32},
		{whole(float64(idleSessions)) + " idle sessions", tcp, idle, idleSessions},
		{"UDP: 64-byte exchanges, 32 sessions", udp, exchanges, 32},
		{"UDP: 200 bytes one way, flood, 8 sessions", udp, flood, 8},
		{"UDP: 200 bytes one way, " + whole(pacedPerSecond) + "/s, 8 sessions", udp, paced, 8},
		{"UDP: " + whole(float64(idleSessions)) + " idle sessions", udp, idle, idleSessions},
	}
}

// sweepPoints are the numbers of connections in the plot.
var sweepPoints = []int{1, 4, 16, 64, 256, 1000, 2000, 4000, 8000}

// mode is what the backend is asked for. A UDP session begins with an echo in any case.
func (w workload) mode() byte {
	switch w.kind {
	case bulkUp, flood, paced:
		return modeSink
	case bulkDown:
		return modeSource
	case closes, logged:
		return modeOnce
	default:
		return modeEcho
	}
}

// messageBytes is the size of a connection's first message, of what comes back for it, and of each exchange or datagram.
func (w workload) messageBytes() int {
	switch w.kind {
	case exchanges, idle:
		return exchangeBytes
	case flood, paced:
		return oneWayBytes
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
