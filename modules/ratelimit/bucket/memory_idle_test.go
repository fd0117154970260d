package bucket

import (
	"testing"
	"unsafe"
)

// A store that has decided nothing has no room for buckets yet, and says that it has none.
func TestMemoryBeforeTheFirstDecision(t *testing.T) {
	t.Parallel()
	m := NewMemory(1_000_000)
	if n := m.Len(0); n != 0 {
		t.Errorf("it has %d keys", n)
	}
	if top := m.Nearest(0, nil, 5); len(top) != 0 {
		t.Errorf("nearest are %v", top)
	}
	if size := unsafe.Sizeof(*m); m.shards.Load() != nil || size > 256 {
		t.Errorf("it takes %d bytes, and has shards: %t", size, m.shards.Load() != nil)
	}
}
