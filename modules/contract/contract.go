// Package contract holds the tests that all handlers have in common: each serves a connection in the same way, whichever entrance
// the connection has taken. It has no code of its own.
package contract
