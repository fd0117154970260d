//go:build !unix

package filewatch

// withoutWaiting: no system but Unix has pipes in its file system.
const withoutWaiting = 0
