//go:build !linux

package check

import "errors"

// loop is an event loop, which there is on Linux only.
type loop struct{}

type loopState struct{}

func newLoop() (*loop, error) { return nil, errors.ErrUnsupported }

func (*loop) serves(*exchange) bool { return false }
func (*loop) begin(...*exchange)    {}
func (*loop) cancel(*exchange)      {}
func (*loop) close()                {}
