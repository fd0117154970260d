// Package house holds the tests that look at the checkout as a whole: that the import arrows are
// guarded, that xcaddy.json, portgate.go and go.mod tell the same story, that every direct
// dependency has its reason written down, that no test compiles under a time limit or has no time to wait, and that the programs which tests run get installed. It
// has no code of its own.
package house
