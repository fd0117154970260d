package relay

import (
	"math/rand/v2"
	"testing"
)

// The slots against a map, which is slow and obvious.
func TestSlotsAgainstAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var s slots
	all := map[int32]loopSocket{}
	var used []int32
	for range 200_000 {
		if most := 3000 - random.IntN(3000); len(used) < most {
			sock := new(half)
			slot := s.add(sock)
			if slot <= 0 || all[slot] != nil {
				t.Fatalf("slot %d is in use", slot)
			}
			all[slot], used = sock, append(used, slot)
		} else if len(used) > 0 {
			i := random.IntN(len(used))
			slot := used[i]
			used[i], used = used[len(used)-1], used[:len(used)-1]
			s.remove(slot)
			delete(all, slot)
		}
		for range 3 {
			slot := int32(random.IntN(4000)) - 10
			if got := s.get(slot); got != all[slot] {
				t.Fatalf("slot %d: got %v, want %v", slot, got, all[slot])
			}
		}
	}
}

// What many sessions took is given back when they have ended, whichever ends first, and a few that are left keep little.
func TestSlotsAreGivenBack(t *testing.T) {
	const many = 100 * slotsPerChunk
	for name, order := range map[string]func(i int) int{
		"first to last": func(i int) int { return i },
		"last to first": func(i int) int { return many - 1 - i },
	} {
		var s slots
		taken := make([]int32, many)
		for i := range taken {
			taken[i] = s.add(new(half))
		}
		for i := range many - 2 {
			s.remove(taken[order(i)])
		}
		chunks := 0
		for _, c := range s.chunks {
			if c != nil {
				chunks++
			}
		}
		if chunks > 2 {
			t.Errorf("%s: two sockets keep %d chunks", name, chunks)
		}
		s.remove(taken[order(many-2)])
		s.remove(taken[order(many-1)])
		if len(s.chunks) != 0 {
			t.Errorf("%s: %d chunks without a socket", name, len(s.chunks))
		}
		if slot := s.add(new(half)); slot != 1 {
			t.Errorf("%s: the next slot is %d", name, slot)
		}
	}
}

// Sessions that come one after the other cost no memory.
func TestSlotsOfFewAllocateNothing(t *testing.T) {
	var s slots
	sock := new(half)
	if allocs := testing.AllocsPerRun(100, func() { s.remove(s.add(sock)) }); allocs > 0 {
		t.Errorf("%v allocations for each", allocs)
	}
}

// However large the descriptors are, a loop keeps no more than its own sockets take.
func TestSlotsDoNotDependOnDescriptors(t *testing.T) {
	l := still(t)
	var all []*stillSession
	for range 10 {
		all = append(all, newStillSession(t, l, -1, nil))
	}
	for _, s := range all {
		if int(s.slot) > len(all) {
			t.Errorf("slot %d for %d sockets", s.slot, len(all))
		}
	}
	for _, s := range all {
		s.closeUpstream()
	}
	if len(l.sockets.chunks) != 0 {
		t.Errorf("%d chunks are kept for no socket", len(l.sockets.chunks))
	}
}
