package forward

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
)

// manyUpstreams are the lines of so many.
func manyUpstreams(n int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf("10.%d.%d.%d:9000 weight=%d", i>>16, i>>8&255, i&255, 1+i%5)
	}
	return lines
}

// Ten thousand upstreams of a file are in use within a second, and take no more than 20 MiB; and so they are after one of them has changed.
func TestTenThousandUpstreams(t *testing.T) {
	const n = 10_000
	lines := manyUpstreams(n)
	path := filepath.Join(t.TempDir(), "upstreams")
	write := func(lines []string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(lines[:1])
	h, _, _ := provision(t, fmt.Sprintf(`{"dynamic": [{"source": "file", "path": %q}]}`, path))
	has := func(want int) {
		t.Helper()
		eventually(t, func() error {
			if got := h.rosters.now.Load().pool.Len(); got != want {
				return fmt.Errorf("%d upstreams", got)
			}
			return nil
		})
	}
	has(1)
	before := heapInUse()
	begun := time.Now()
	write(lines)
	has(n)
	took := time.Since(begun)
	grown := heapInUse() - before
	begun = time.Now()
	write(lines[1:])
	has(n - 1)
	t.Logf("%d upstreams: in use after %v, one changed after %v, %.1f MiB", n, took, time.Since(begun), float64(grown)/(1<<20))
	if grown > 20<<20 {
		t.Errorf("%.1f MiB", float64(grown)/(1<<20))
	}
}

func heapInUse() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// BenchmarkChangeOfOne is what it costs that one of ten thousand upstreams changes.
func BenchmarkChangeOfOne(b *testing.B) {
	source := stageOf(b.Name())
	all := lists(b, manyUpstreams(10_000)...)
	other := discovery.Answer{Entries: all.Entries[1:]}
	source.says(all)
	h, _, _ := provision(b, fmt.Sprintf(`{"dynamic": [{"source": "test_spoken", "name": %q}]}`, b.Name()))
	eventually(b, func() error {
		if h.rosters.now.Load().pool.Len() != 10_000 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			source.says(other)
		} else {
			source.says(all)
		}
	}
}
