// Package house holds the tests that look at the checkout as a whole: that the import arrows are
// guarded, that xcaddy.json, portgate.go and go.mod tell the same story, that every direct
// dependency has its reason written down, and that it builds for other systems. It has no code of its own.
package house
