//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !dragonfly

package acl

import (
	"context"
	"errors"
)

func lockFile(context.Context, string) (unlock func(), err error) { return nil, errors.ErrUnsupported }

// syncFolder does nothing: a folder can't be opened to be synced.
func syncFolder(string) error { return nil }
