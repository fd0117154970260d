package acl

import (
	"bytes"
	"errors"
	"hash/maphash"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/filewatch"
)

// growthPause is the least time between two looks at what was appended to a file.
const growthPause = 500 * time.Millisecond

// growth knows the content that is in use, to tell whether a file is that and more. What is appended line by line may be taken
// at once: whoever is on the list stays on it. A file that has become shorter, or that begins with something else, may be
// one that is being written anew, so that who is missing comes later.
type growth struct {
	size  int64
	sum   uint64
	known bool        // there is such a content
	grown bool        // it was appended to, and may be appended to again
	tried os.FileInfo // the file when it was last looked at
	next  time.Time   // not before this it is looked at again
}

var growthSeed = maphash.MakeSeed()

// begin notes the content that is in use now.
func (g *growth) begin(data []byte) {
	*g = growth{size: int64(len(data)), sum: maphash.Bytes(growthSeed, data), known: true}
}

// is tells whether this is the content that is in use.
func (g *growth) is(data []byte) bool {
	return g.known && int64(len(data)) == g.size && maphash.Bytes(growthSeed, data) == g.sum
}

// continuedBy tells whether this is the content that is in use, and more.
func (g *growth) continuedBy(data []byte) bool {
	return g.known && int64(len(data)) > g.size && maphash.Bytes(growthSeed, data[:g.size]) == g.sum
}

// grow takes over the complete lines of a file that is still written, if they continue what is in use. A long list is read
// less often, so that at most a third of a processor is spent with that.
func (f *file) grow(opened *os.File, info os.FileInfo) {
	g, start := &f.growth, time.Now()
	if !f.grows || !g.known || info.Size() <= g.size || info.Size() > f.most || start.Before(g.next) || filewatch.Same(info, g.tried) {
		return
	}
	data, err := readLines(opened, info.Size())
	if err == nil && g.continuedBy(data) {
		var set *ipset.Set
		var report ipset.Report
		if set, report, err = f.parse(data); err == nil {
			appended := plainPrefixes(data, int(g.size))
			g.begin(data)
			g.grown = true
			f.take(set, report, appended)
			f.log().Debug("list has grown", zap.Int("entries", set.Len()))
		}
	}
	if err != nil && !errors.Is(err, errChanging) {
		f.log().Debug("reading a file that grows", zap.Error(err)) // once it is complete, the same is an error
	}
	g.tried, g.next = info, time.Now().Add(max(growthPause, 2*time.Since(start)))
}

// plainPrefixes returns the prefixes of the lines from a position on, so that only the sessions of these clients are judged
// again. It returns nil where there is anything else in them, or the position is within a line.
func plainPrefixes(data []byte, from int) (all []netip.Prefix) {
	if from > 0 && data[from-1] != '\n' {
		return nil
	}
	for line := range bytes.Lines(data[from:]) {
		text, _, _ := strings.Cut(string(line), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		prefix, err := ipset.ParsePrefix(text)
		if err != nil || len(all) == maxChanges {
			return nil
		}
		all = append(all, prefix)
	}
	return all
}

// settle is called when a file was found to have the content that is in use.
func (f *file) settle() {
	f.succeeded(time.Now())
	if f.growth.grown {
		f.growth.grown = false
		f.log().Info("list loaded", zap.Int("entries", f.set.Load().Len()))
	}
}

// readLines reads so much of a file that is still written, up to the end of the last complete line. It reads twice: of a file
// that is cut and written anew meanwhile it might get a part of the old content and a part of the new one.
func readLines(opened *os.File, size int64) ([]byte, error) {
	data := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(opened, 0, size), data); err != nil {
		return nil, errChanging
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	if len(data) == 0 || !ipset.IsLines(data) || bytes.IndexByte(data, 0) >= 0 { // zeros are where nothing is written yet
		return nil, errChanging
	}
	var again maphash.Hash
	again.SetSeed(growthSeed)
	_, err := io.Copy(&again, io.NewSectionReader(opened, 0, int64(len(data))))
	if err != nil || again.Sum64() != maphash.Bytes(growthSeed, data) {
		return nil, errChanging
	}
	return data, nil
}
