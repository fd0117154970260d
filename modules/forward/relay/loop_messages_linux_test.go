package relay

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// newcomer is a session to which messages are posted. It notes that they were handled.
type newcomer struct {
	loopSession
	kind    int
	handled *[]string
	id      int
}

func (n *newcomer) inbox() int { return n.kind }

func (n *newcomer) handle(*message) {
	*n.handled = append(*n.handled, fmt.Sprintf("%d/%d", n.kind, n.id))
}

// A session that has more to move is served in every round, however many sockets are to be opened and closed; those
// of datagrams do not keep back those of streams, and all of a kind keep their order.
func TestMessagesDoNotHoldUpSessions(t *testing.T) {
	const many = 10 * messagesPerRound
	l := still(t)
	busy := &taking{loop: l}
	l.ready = append(l.ready, busy)
	var handled, want []string
	for i := range many {
		l.post(message{to: &newcomer{kind: inboxPackets, handled: &handled, id: i}})
		want = append(want, fmt.Sprintf("%d/%d", inboxPackets, i))
	}
	l.post(message{to: &newcomer{kind: inboxStreams, handled: &handled}})
	for round := 1; len(handled) < many+1; round++ {
		if l.mayPark() {
			t.Fatalf("the loop parks with %d of %d messages handled", len(handled), many+1)
		}
		before := len(handled)
		l.round()
		if busy.had != round {
			t.Fatalf("served %d times in %d rounds", busy.had, round)
		}
		most := messagesPerRound
		if round == 1 {
			most++ // that of the stream
			if !slices.Contains(handled, fmt.Sprintf("%d/0", inboxStreams)) {
				t.Error("the message of a stream waits behind those of datagrams")
			}
		}
		if n := len(handled) - before; n < 1 || n > most {
			t.Errorf("%d messages in round %d, want 1 to %d", n, round, most)
		}
	}
	handled = slices.DeleteFunc(handled, func(s string) bool { return s == fmt.Sprintf("%d/0", inboxStreams) })
	if !slices.Equal(handled, want) {
		t.Errorf("not in order: %v", handled)
	}
	l.ready = nil
	if !l.mayPark() {
		t.Error("the loop does not park when all messages were handled")
	}
}

// slowly is a newcomer whose socket takes long to open.
type slowly struct{ *newcomer }

func (s slowly) handle(m *message) {
	for began := time.Now(); time.Since(began) < 2*readyTime; {
	}
	s.newcomer.handle(m)
}

func TestMessagesThatTakeLongGiveWayToOthers(t *testing.T) {
	l := still(t)
	var handled []string
	for i := range 3 {
		l.post(message{to: slowly{&newcomer{kind: inboxPackets, handled: &handled, id: i}}})
	}
	for round := 1; round <= 3; round++ {
		l.sharedAt = time.Since(epoch)
		l.round()
		if len(handled) != round {
			t.Errorf("%d messages in %d rounds", len(handled), round)
		}
	}
}

// What a burst of messages took is given back.
func TestInboxAfterABurst(t *testing.T) {
	l := still(t)
	var handled []string
	n := newcomer{kind: inboxStreams, handled: &handled}
	for range 100_000 {
		l.post(message{to: &n})
	}
	for range 100_000 {
		l.round()
	}
	for range 3 {
		l.post(message{to: &n})
		l.round()
	}
	in := &l.inbox[inboxStreams]
	if got := cap(in.posted) + cap(in.batch); len(handled) != 100_003 || got > 2*128*messagesPerRound {
		t.Errorf("%d messages handled, room for %d is kept", len(handled), got)
	}
}
