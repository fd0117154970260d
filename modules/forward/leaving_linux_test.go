package forward

import (
	"strings"
	"testing"
)

// noticesLeaving reports whether a client that leaves is noticed: behind a wrapper nobody knows its socket.
func noticesLeaving(t *testing.T) bool { return !strings.HasSuffix(t.Name(), "/wrapped") }
