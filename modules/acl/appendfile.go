package acl

import (
	"os"

	"github.com/caddyserver/certmagic"
)

// appendTo appends to a value of this size in Caddy's file storage. That takes a fraction of the time in which the storage
// replaces the value: no file is created or renamed. It reports false if it can't be done, or not completely, so that the
// value is to be replaced.
func appendTo(storage certmagic.Storage, key string, size int, more []byte) bool {
	files, ok := storage.(*certmagic.FileStorage)
	if !ok {
		return false
	}
	f, err := os.OpenFile(files.Filename(key), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != int64(size) {
		return false
	}
	if _, err := f.Write(more); err != nil {
		_ = f.Truncate(int64(size)) // else a part of a line is left, which only a disk with room lets others take away
		return false
	}
	return f.Sync() == nil
}

// fileSize returns the size of a value in Caddy's file storage, and -1 elsewhere and if there is none.
func fileSize(storage certmagic.Storage, key string) int64 {
	files, ok := storage.(*certmagic.FileStorage)
	if !ok {
		return -1
	}
	info, err := os.Stat(files.Filename(key))
	if err != nil {
		return -1
	}
	return info.Size()
}
