package relay

// slots are the sockets that a loop watches. An epoll event has the number of the slot. Numbers are used again, the lowest
// first, and chunks without a socket are given back, except one: the memory follows the number of living sessions, however large the
// descriptors of the process become.
type slots struct {
	chunks []*slotChunk // nil where there is no socket
	free   int          // no chunk before this one has room
	spare  *slotChunk   // an empty one, for a loop with few sessions that come and go
}

const slotsPerChunk = 256

type slotChunk struct {
	sockets [slotsPerChunk]loopSocket
	used    int
	free    int // no slot before this one is free
}

// add returns the slot of a socket, which is above 0.
func (s *slots) add(sock loopSocket) (slot int32) {
	for ; ; s.free++ {
		if s.free == len(s.chunks) {
			s.chunks = append(s.chunks, nil)
		}
		if c := s.chunks[s.free]; c == nil || c.used < slotsPerChunk {
			break
		}
	}
	c := s.chunks[s.free]
	if c == nil {
		if c, s.spare = s.spare, nil; c == nil {
			c = new(slotChunk)
		}
		s.chunks[s.free] = c
	}
	for c.sockets[c.free] != nil {
		c.free++
	}
	c.sockets[c.free] = sock
	c.used++
	return int32(s.free*slotsPerChunk + c.free + 1)
}

// get returns the socket of a slot, nil where there is none.
func (s *slots) get(slot int32) loopSocket {
	i := int(slot) - 1
	if i < 0 || i/slotsPerChunk >= len(s.chunks) || s.chunks[i/slotsPerChunk] == nil {
		return nil
	}
	return s.chunks[i/slotsPerChunk].sockets[i%slotsPerChunk]
}

// replace gives a slot that is in use to another socket.
func (s *slots) replace(slot int32, sock loopSocket) {
	i := int(slot) - 1
	s.chunks[i/slotsPerChunk].sockets[i%slotsPerChunk] = sock
}

// remove frees a slot that is in use.
func (s *slots) remove(slot int32) {
	chunk, i := (int(slot)-1)/slotsPerChunk, (int(slot)-1)%slotsPerChunk
	c := s.chunks[chunk]
	c.sockets[i] = nil
	c.used--
	c.free = min(c.free, i)
	s.free = min(s.free, chunk)
	if c.used > 0 {
		return
	}
	s.chunks[chunk], s.spare = nil, c
	for n := len(s.chunks); n > 0 && s.chunks[n-1] == nil; n-- {
		s.chunks = s.chunks[:n-1]
	}
	s.free = min(s.free, len(s.chunks))
}
