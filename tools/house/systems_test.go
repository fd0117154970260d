package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Portgate is for Linux, where the event loops are. On other systems goroutines move the bytes, and that has to go on to build, as have
// processors with words of 32 bits.
func TestBuildsForOtherSystems(t *testing.T) {
	t.Parallel()
	for _, target := range []struct{ system, processor string }{
		{"linux", "386"}, {"darwin", "arm64"}, {"windows", "amd64"},
	} {
		t.Run(target.system+"/"+target.processor, func(t *testing.T) {
			build := exec.Command("go", "build", "./cmd/...", "./modules/...")
			build.Dir = filepath.Join("..", "..")
			build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+target.system, "GOARCH="+target.processor)
			if output, err := build.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, output)
			}
		})
	}
}
