package relay

import "time"

// Messages open and close sockets, which takes far longer than to serve a session. A round handles only some of each kind, so
// that clients who come and go, such as those of a flood of forged datagrams, do not hold up the sessions that there are, and
// datagrams do not hold up streams. The rest waits for the next rounds, in order.
const messagesPerRound = 16

// inbox is the messages to one kind of session, which any goroutine posts and the loop handles.
type inbox struct {
	posted []message // guarded by loop.mu

	// The fields below belong to the loop's goroutine.

	batch []message // taken from posted
	done  int       // of batch
}

// The kinds of inboxes.
const (
	inboxStreams = iota
	inboxPackets
	inboxes
)

// post adds a message to an inbox. It does not block.
func (l *loop) post(m message) {
	in := &l.inbox[m.to.inbox()]
	l.mu.Lock()
	in.posted = append(in.posted, m)
	wake := l.parked
	l.parked = false
	l.mu.Unlock()
	if wake {
		l.wake()
	}
}

// handleMessages handles up to messagesPerRound messages of each kind, and fewer where they take longer than readyTime and
// others wait.
func (l *loop) handleMessages() {
	l.mu.Lock()
	l.parked = false
	for i := range l.inbox {
		if in := &l.inbox[i]; in.done == len(in.batch) {
			clear(in.batch)
			in.batch, in.posted, in.done = in.posted, emptied(in.batch), 0
		}
	}
	l.mu.Unlock()
	for i := range l.inbox {
		in := &l.inbox[i]
		if in.done == len(in.batch) {
			continue
		}
		l.now = time.Since(epoch) // not before the sessions were made
		for n := 0; n < messagesPerRound && in.done < len(in.batch); n++ {
			if n > 0 && l.isShared() && time.Since(epoch)-l.now > readyTime {
				break
			}
			m := &in.batch[in.done]
			in.done++
			l.current = m.to
			m.to.handle(m)
		}
	}
}

// emptied returns a slice to append to, without the memory that a burst of messages has left.
func emptied(batch []message) []message {
	if cap(batch) > 128*messagesPerRound {
		return nil
	}
	return batch[:0]
}

// hasMessages is called with l.mu locked.
func (l *loop) hasMessages() bool {
	for i := range l.inbox {
		if in := &l.inbox[i]; len(in.posted) > 0 || in.done < len(in.batch) {
			return true
		}
	}
	return false
}
