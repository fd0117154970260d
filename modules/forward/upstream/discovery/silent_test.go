package discovery

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// service is the targets of an SRV answer, of which all that begin with "silent" are never answered.
func service(t *testing.T, targets ...string) (s *nameServer, all []*dns.SRV) {
	t.Helper()
	s = newNameServer(t)
	s.set(func(_ string, query *dns.Msg) *dns.Msg {
		q, m := query.Question[0], new(dns.Msg).SetReply(query)
		switch {
		case strings.HasPrefix(q.Name, "silent"):
			return nil
		case q.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 60}, A: []byte{10, 0, 0, 1}})
		}
		return m
	})
	for _, target := range targets {
		all = append(all, &dns.SRV{Target: target, Port: 7001})
	}
	return s, all
}

// However many targets are silent, the others are used soon: nobody waits until each of the silent ones has had its time.
func TestSRVSilentTargets(t *testing.T) {
	t.Parallel()
	const silent = 1500
	targets := []string{"answers.test."}
	for i := range silent {
		targets = append(targets, fmt.Sprintf("silent%d.test.", i))
	}
	s, records := service(t, targets...)
	srv := &SRV{Refresh: time.Minute, Resolver: Resolver{Servers: []string{s.addr}}}
	hosts := map[string]*host{"answers.test.": {name: "answers.test.", asked: time.Now()}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // each of the silent ones takes seconds
	defer cancel()
	answer, ttl, err := srv.resolved(ctx, records, hosts, unknown)
	if err != nil || ctx.Err() != nil || len(answer.Entries) != 1 || answer.Bad != silent || ttl != MinRefresh {
		t.Fatalf("%d upstreams and %d bad ones, asked again after %v, %v, %v", len(answer.Entries), answer.Bad, ttl, err, ctx.Err())
	}
	asked := make(map[string]bool)
	for name, h := range hosts {
		asked[name] = !h.asked.IsZero()
	}
	// The next ones are those that have not been asked, and the one that answers.
	next := make(map[string]*found)
	for name := range hosts {
		next[name] = nil
	}
	order := inTurn(next, hosts)
	if order[0].name != "answers.test." {
		t.Errorf("%s is first", order[0].name)
	}
	for i, h := range order[1:] {
		if waiting := silent - (count(asked) - 1); asked[h.name] != (i >= waiting) {
			t.Fatalf("%s is asked as number %d", h.name, i)
		}
	}
}

func count(of map[string]bool) (n int) {
	for _, is := range of {
		if is {
			n++
		}
	}
	return n
}

// remembers is a sink of a keeper that begins with an earlier answer.
type remembers struct {
	reports
	last []Entry
}

func (r remembers) Last() []Entry { return r.last }

// A source that begins, and finds only a part, keeps of the last answer what it can't find: also of an earlier process or config.
func TestWhatIsKnownFromEarlier(t *testing.T) {
	t.Parallel()
	s, targets := service(t, "answers.test.", "silent.test.", "silent2.test.")
	known := s.reply
	s.set(func(network string, query *dns.Msg) *dns.Msg {
		if query.Question[0].Qtype == dns.TypeSRV {
			m := new(dns.Msg).SetReply(query)
			for _, target := range targets {
				target.Hdr = dns.RR_Header{Name: query.Question[0].Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 60}
				m.Answer = append(m.Answer, target)
			}
			return m
		}
		if query.Question[0].Qtype == dns.TypeAAAA {
			return nil
		}
		return known(network, query)
	})
	resolver := Resolver{Servers: []string{s.addr}}
	for name, c := range map[string]struct {
		source Source
		last   []Entry
		want   []Entry
	}{
		"srv": {
			&SRV{Name: "db.test.", Refresh: time.Minute, Resolver: resolver},
			[]Entry{{Address: "10.0.0.2:9", Host: "silent.test."}, {Address: "10.0.0.3:9", Host: "gone.test."}, {Address: "10.0.0.4:9"}},
			[]Entry{{Address: "10.0.0.1:7001", Host: "answers.test."}, {Address: "10.0.0.2:7001", Host: "silent.test."}},
		},
		"a": {
			&A{Name: "answers.test", Port: 9, Refresh: time.Minute, Resolver: resolver},
			[]Entry{{Address: "10.0.0.7:9", Host: "answers.test"}, {Address: "[2001:db8::1]:9", Host: "answers.test"}},
			[]Entry{{Address: "10.0.0.1:9", Host: "answers.test"}, {Address: "[2001:db8::1]:9", Host: "answers.test"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			said := make(reports, 16)
			var running sync.WaitGroup
			running.Go(func() { c.source.Run(ctx, remembers{said, c.last}) })
			defer running.Wait()
			defer cancel()
			select {
			case report := <-said:
				if answer, ok := report.(Answer); !ok || !reflect.DeepEqual(answer.Entries, c.want) {
					t.Errorf("%+v, want %+v", report, c.want)
				}
			case <-time.After(time.Minute):
				t.Fatal("the source says nothing")
			}
		})
	}
}
