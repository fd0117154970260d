package acl

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// Where the storage has lists.
const (
	listsFolder = "portgate/lists"
	feedsFolder = "portgate/feeds"
	// damagedFolder has copies of lists that could not be read.
	damagedFolder = "portgate/damaged"
)

// started is when this process has begun.
var started = time.Now()

// removeLeftovers deletes temporary files. Caddy's file storage writes a value to a file whose name is a number, and renames
// it; a process that is killed in between leaves that file.
func removeLeftovers(storage certmagic.Storage, folders ...string) {
	if _, ok := storage.(*certmagic.FileStorage); !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	for _, folder := range folders {
		keys, _ := storage.List(ctx, folder, false) // an error is left to whoever reads lists there
		for _, key := range keys {
			if !isLeftover(path.Base(key)) {
				continue
			}
			info, err := storage.Stat(ctx, key)
			if err == nil && info.IsTerminal && info.Modified.Before(started) { // no directory, and not our own
				_ = storage.Delete(ctx, key)
			}
		}
	}
}

// isLeftover tells names that os.CreateTemp makes from those of lists and segments.
func isLeftover(name string) bool {
	const longest = len("4294967295")
	return name != "" && len(name) <= longest && strings.Trim(name, "0123456789") == ""
}
