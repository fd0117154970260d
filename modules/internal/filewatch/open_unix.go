//go:build unix

package filewatch

import "syscall"

// withoutWaiting opens a pipe at once. It changes nothing for a regular file.
const withoutWaiting = syscall.O_NONBLOCK
