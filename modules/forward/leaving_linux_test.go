package forward

import "testing"

// noticesLeaving reports whether a client that resets its connection is noticed while it waits, also behind a wrapper that is known to have a socket.
func noticesLeaving(*testing.T) bool { return true }
