package house

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blockingLogger matches how a logger is got that waits for its destination.
var blockingLogger = regexp.MustCompile(`\bcaddy\.Log\(\)|\bctx\.(Logger|Slogger)\(`)

// TestLogsNeverBlock holds that what the modules log passes the queues of logqueue: a log that nobody reads would stop a port else.
func TestLogsNeverBlock(t *testing.T) {
	t.Parallel()
	modules := filepath.Join(checkout, "modules")
	err := filepath.WalkDir(modules, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == "logqueue" {
			return nil
		}
		data, err := os.ReadFile(path)
		for line := range strings.Lines(string(data)) {
			if blockingLogger.MatchString(line) && !strings.Contains(line, "logqueue.Wrap") {
				t.Errorf("%s: %s: expected a logger of logqueue", path, strings.TrimSpace(line))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
