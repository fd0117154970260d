package acl

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/caddyserver/certmagic"
)

// storageTimeout bounds one access to the storage.
const storageTimeout = 10 * time.Second

func loadKey(storage certmagic.Storage, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	return storage.Load(ctx, key)
}

// storeKey stores a value, which a power cut does not take away again when storeKey has returned.
func storeKey(storage certmagic.Storage, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	if err := storage.Store(ctx, key, value); err != nil {
		return err
	}
	if files, ok := storage.(*certmagic.FileStorage); ok {
		return syncFolders(files.Path, files.Filename(key))
	}
	return nil
}

func deleteKey(storage certmagic.Storage, key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	return storage.Delete(ctx, key)
}

// listKeys returns what a folder has. Caddy's file storage ends with an error if a file is deleted meanwhile.
func listKeys(storage certmagic.Storage, folder string) (keys []string, err error) {
	files, ok := storage.(*certmagic.FileStorage)
	if !ok {
		ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
		defer cancel()
		return storage.List(ctx, folder, false)
	}
	entries, err := os.ReadDir(files.Filename(folder))
	for _, entry := range entries {
		keys = append(keys, path.Join(folder, entry.Name()))
	}
	return keys, err
}

// syncFolders has the system write the names of a new file, and of the folders that it is in, to the disk. Caddy's file storage
// writes the file alone.
func syncFolders(root, file string) error {
	root = filepath.Clean(root)
	for folder := filepath.Dir(file); len(folder) >= len(root); folder = filepath.Dir(folder) {
		if err := syncFolder(folder); err != nil {
			return err
		}
		if folder == filepath.Dir(folder) {
			break
		}
	}
	return nil
}
