package discovery

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nameServer answers as a test says, over UDP and TCP.
type nameServer struct {
	addr string

	mu    sync.Mutex
	reply func(network string, query *dns.Msg) *dns.Msg
	asked []string
}

func (s *nameServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	network := w.LocalAddr().Network()
	s.mu.Lock()
	edns := ""
	if query.IsEdns0() != nil {
		edns = " edns"
	}
	s.asked = append(s.asked, network+" "+dns.TypeToString[query.Question[0].Qtype]+" "+query.Question[0].Name+edns)
	reply := s.reply(network, query)
	s.mu.Unlock()
	if reply != nil {
		_ = w.WriteMsg(reply)
	}
}

func (s *nameServer) set(reply func(network string, query *dns.Msg) *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply, s.asked = reply, nil
}

func (s *nameServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	s := &nameServer{reply: func(string, *dns.Msg) *dns.Msg { return nil }}
	var packets net.PacketConn
	var streams net.Listener
	for {
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if streams, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
	}
	s.addr = packets.LocalAddr().String()
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait) // after the servers were told to stop
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: streams, Handler: s}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		serving.Go(func() { _ = server.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return s
}

// records makes a server know these records, in the form of a zone file.
func records(t *testing.T, zone ...string) func(string, *dns.Msg) *dns.Msg {
	t.Helper()
	var all []dns.RR
	for _, line := range zone {
		record, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, record)
	}
	return func(_ string, query *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(query)
		exists := false
		for _, record := range all {
			if strings.EqualFold(record.Header().Name, query.Question[0].Name) {
				exists = true
				if record.Header().Rrtype == query.Question[0].Qtype {
					m.Answer = append(m.Answer, record)
				}
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		return m
	}
}

func rcode(code int) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, query *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(query, code) }
}

func lookUp(t *testing.T, r *Resolver, name string, kind uint16) (found []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	msg, err := r.ask(ctx, name, kind)
	if err != nil {
		return nil, err
	}
	for _, ip := range addresses(msg.Answer) {
		found = append(found, ip.String())
	}
	return found, nil
}

func TestResolverAsksTheNextServer(t *testing.T) {
	t.Parallel()
	first, second := newNameServer(t), newNameServer(t)
	r := &Resolver{Servers: []string{first.addr, second.addr}}
	second.set(records(t, "db.test. 60 A 10.0.0.1"))
	for name, reply := range map[string]func(string, *dns.Msg) *dns.Msg{
		"it fails":   rcode(dns.RcodeServerFailure),
		"it refuses": rcode(dns.RcodeRefused),
		"it answers something else": func(_ string, query *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(query)
			m.Question[0].Name = "other.test."
			return m
		},
	} {
		first.set(reply)
		if found, err := lookUp(t, r, "db.test", dns.TypeA); err != nil || !reflect.DeepEqual(found, []string{"10.0.0.1"}) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	first.set(rcode(dns.RcodeNameError))
	if _, err := lookUp(t, r, "db.test", dns.TypeA); !isNotFound(err) {
		t.Errorf("a server that says there is no such name is not believed: %v", err)
	}
	first.set(rcode(dns.RcodeServerFailure))
	second.set(rcode(dns.RcodeServerFailure))
	if _, err := lookUp(t, r, "db.test", dns.TypeA); err == nil || isNotFound(err) ||
		err.Error() != "A db.test: name server "+second.addr+" answers SERVFAIL" {
		t.Errorf("both fail: %v", err)
	}
	if n := len(second.questions()); n != serverAttempts {
		t.Errorf("asked %d times", n)
	}
}

func TestResolverTruncatedAndOld(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	r := &Resolver{Servers: []string{s.addr}}
	whole := records(t, "db.test. 60 A 10.0.0.1", "db.test. 60 A 10.0.0.2")
	s.set(func(network string, query *dns.Msg) *dns.Msg {
		m := whole(network, query)
		if network == "udp" {
			m.Truncated, m.Answer = true, m.Answer[:1]
		}
		return m
	})
	if found, err := lookUp(t, r, "db.test", dns.TypeA); err != nil || len(found) != 2 {
		t.Errorf("truncated: %v, %v", found, err)
	}
	s.set(func(network string, query *dns.Msg) *dns.Msg {
		if query.IsEdns0() != nil {
			return new(dns.Msg).SetRcodeFormatError(query)
		}
		return whole(network, query)
	})
	if found, err := lookUp(t, r, "db.test", dns.TypeA); err != nil || len(found) != 2 {
		t.Errorf("without EDNS: %v, %v", found, err)
	}
}

// A server that says nothing is asked again, and is no reason not to stop at once.
func TestResolverSilentServer(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	r := &Resolver{Servers: []string{s.addr}}
	ctx, cancel := context.WithCancel(t.Context())
	s.set(func(string, *dns.Msg) *dns.Msg {
		cancel()
		return nil
	})
	start := time.Now()
	if _, err := r.ask(ctx, "db.test", dns.TypeA); err == nil {
		t.Error("an answer")
	}
	if took := time.Since(start); took >= serverTimeout {
		t.Errorf("took %v", took)
	}
}

func TestResolvConf(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	r := &Resolver{conf: conf}
	if _, err := r.plan("db"); err == nil || err.Error() != "resolvers: this system has no "+conf+": expected the addresses of name servers" {
		t.Errorf("got %v", err)
	}
	for text, want := range map[string]plan{
		"nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a.test b.test\noptions ndots:2 timeout:1 attempts:3": {
			[]string{"10.0.0.1:53", "[fe80::1%eth0]:53"}, []string{"db.a.test.", "db.b.test.", "db."}, time.Second, 3,
		},
		"": {[]string{"127.0.0.1:53"}, []string{"db."}, 5 * time.Second, 2},
	} {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := r.plan("db"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestParseServer(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"10.0.0.53": "10.0.0.53:53", "10.0.0.53:5353": "10.0.0.53:5353", "::1": "[::1]:53", "[::1]": "[::1]:53", "[::1]:54": "[::1]:54",
		"dns.test": "", "10.0.0.53:0": "", ":53": "", "": "", "10.0.0.53:port": "",
	} {
		if got, err := ParseServer(s); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", s, got, err)
		}
	}
}

// reports is a sink that has all that a source says.
type reports chan any

func (r reports) Answer(a Answer)  { r <- a }
func (r reports) Same()            {}
func (r reports) Failed(err error) { r <- err }
func (r reports) Last() []Entry    { return nil }

// next runs a source until it has said something.
func next(t *testing.T, source Source) (Answer, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	said := make(reports, 16)
	var running sync.WaitGroup
	running.Go(func() { source.Run(ctx, said) })
	defer running.Wait()
	defer cancel()
	select {
	case report := <-said:
		if err, ok := report.(error); ok {
			return Answer{}, err
		}
		return report.(Answer), nil
	case <-time.After(time.Minute):
		t.Fatal("the source says nothing")
		return Answer{}, nil
	}
}

func TestA(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	a := &A{Name: "db.test", Port: 5432, Refresh: time.Minute, Resolver: Resolver{Servers: []string{s.addr}}}
	s.set(records(t, "db.test. 60 A 10.0.0.1", "db.test. 60 A 10.0.0.2", "db.test. 60 AAAA 2001:db8::1"))
	got, err := next(t, a)
	want := []Entry{
		{Address: "10.0.0.1:5432", Host: "db.test"}, {Address: "10.0.0.2:5432", Host: "db.test"}, {Address: "[2001:db8::1]:5432", Host: "db.test"},
	}
	if err != nil || !reflect.DeepEqual(got.Entries, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	s.set(records(t))
	if _, err := next(t, a); err == nil || err.Error() != "db.test: the name server says that there is no such name" {
		t.Errorf("no such name: %v", err)
	}
	s.set(records(t, "db.test. 60 TXT text"))
	if _, err := next(t, a); err == nil || err.Error() != "db.test: the name server says that there is no A record" {
		t.Errorf("no address: %v", err)
	}
}

// unknown is the past of which nothing is known.
func unknown() past { return nil }

// Where one of two questions is not answered, what was known of that family stays.
func TestHalfAnAnswer(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	r := &Resolver{Servers: []string{s.addr}}
	h := host{name: "db.test"}
	look := func(zone ...string) (int, time.Duration, error) {
		known := records(t, zone...)
		s.set(func(network string, query *dns.Msg) *dns.Msg {
			if query.Question[0].Qtype == dns.TypeAAAA && len(zone) == 1 {
				return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
			}
			return known(network, query)
		})
		ips, ttl, err := h.lookUp(t.Context(), r, unknown)
		return len(ips), ttl, err
	}
	if n, ttl, err := look("db.test. 60 A 10.0.0.1"); n != 1 || ttl != MinRefresh || err != nil {
		t.Errorf("before anything is known of the other family: %d, %v, %v", n, ttl, err)
	}
	for _, want := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second} {
		if _, ttl, err := look("db.test. 60 A 10.0.0.1"); ttl != want || err != nil {
			t.Errorf("the other question is asked again after %v, want %v: %v", ttl, want, err)
		}
	}
	if n, ttl, err := look("db.test. 60 A 10.0.0.1", "db.test. 20 AAAA ::1"); n != 2 || ttl != 20*time.Second || err != nil {
		t.Errorf("both: %d, %v, %v", n, ttl, err)
	}
	if n, _, err := look("db.test. 60 A 10.0.0.2"); n != 2 || err != nil {
		t.Errorf("one: %d, %v", n, err)
	}
	if n, ttl, err := look("db.test. 0 A 10.0.0.2", "other.test. 60 AAAA ::1"); n != 1 || ttl != MinRefresh || err != nil {
		t.Errorf("the other is gone: %d, %v, %v", n, ttl, err)
	}
}

func TestSRV(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	srv := &SRV{Name: "_db._tcp.test", Refresh: time.Minute, Resolver: Resolver{Servers: []string{s.addr}}}
	s.set(records(t,
		"_db._tcp.test. 60 SRV 20 0 7003 c.test.", "_db._tcp.test. 60 SRV 10 5 7001 a.test.", "_db._tcp.test. 60 SRV 10 0 7002 b.test.",
		"_db._tcp.test. 60 SRV 30 1 7004 gone.test.",
		"a.test. 60 A 10.0.0.1", "a.test. 60 AAAA 2001:db8::1", "b.test. 60 A 10.0.0.2", "c.test. 60 A 10.0.0.3"))
	got, err := next(t, srv)
	want := []Entry{
		{Address: "10.0.0.1:7001", Weight: 500, Host: "a.test."},
		{Address: "[2001:db8::1]:7001", Weight: 500, Host: "a.test."},
		{Address: "10.0.0.2:7002", Host: "b.test."},
		{Address: "10.0.0.3:7003", Priority: 1, Host: "c.test."},
	}
	if err != nil || !reflect.DeepEqual(got.Entries, want) || got.Bad != 1 || got.First[0].Error() != "gone.test.: the name server says that there is no such name" {
		t.Errorf("got %+v, %v", got, err)
	}
	s.set(records(t, "_db._tcp.test. 60 SRV 0 0 0 ."))
	if got, err := next(t, srv); err != nil || len(got.Entries) > 0 || got.Bad > 0 {
		t.Errorf("a service that is not there: %+v, %v", got, err)
	}
	s.set(records(t))
	if _, err := next(t, srv); err == nil || err.Error() != "_db._tcp.test: the name server says that there is no such name" {
		t.Errorf("no such name: %v", err)
	}
}

// Without name servers of its own, it has names, which are looked up as those of a config are.
func TestSRVNames(t *testing.T) {
	t.Parallel()
	record := func(zone string) *dns.SRV {
		rr, err := dns.NewRR(zone)
		if err != nil {
			t.Fatal(err)
		}
		return rr.(*dns.SRV)
	}
	srv := &SRV{Network: "udp/"}
	got, err := srv.named(servers([]dns.RR{
		record("x. 60 SRV 2 7 53 b.test."), record("x. 60 SRV 1 7 53 a.test."), record("x. 60 SRV 2 7 53 b.test."), record("x. 60 SRV 2 7 0 c.test."),
		record(`x. 60 SRV 2 7 53 a\.\*b.test.`),
	}))
	want := []Entry{{Address: "udp/a.test.:53", Weight: 7}, {Address: "udp/b.test.:53", Weight: 7, Priority: 1}}
	if err != nil || !reflect.DeepEqual(got.Entries, want) || got.Bad != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestSRVWeights(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ weights, want []int }{
		{[]int{0, 0}, []int{0, 0}}, {[]int{1, 3}, []int{1, 3}}, {[]int{0, 3}, []int{0, 300}}, {[]int{0, 65535}, []int{0, 65535}}, {[]int{0, 30000}, []int{0, 60000}},
	} {
		var all []*dns.SRV
		for _, w := range c.weights {
			all = append(all, &dns.SRV{Weight: uint16(w)})
		}
		for i, e := range entries(all) {
			if e.Weight != c.want[i] {
				t.Errorf("%v: weight %d is %d, want %d", c.weights, i, e.Weight, c.want[i])
			}
		}
	}
}

// A target whose name can't be looked up now stays where it was.
func TestSRVTargetFails(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	srv := &SRV{Name: "_db._tcp.test", Resolver: Resolver{Servers: []string{s.addr}}}
	zone := []string{"_db._tcp.test. 60 SRV 1 1 7001 a.test.", "_db._tcp.test. 60 SRV 1 1 7002 b.test.", "a.test. 60 A 10.0.0.1", "b.test. 60 A 10.0.0.2"}
	known := records(t, zone...)
	hosts := make(map[string]*host)
	targets := servers(known("", new(dns.Msg).SetQuestion("_db._tcp.test.", dns.TypeSRV)).Answer)
	s.set(known)
	if got, ttl, err := srv.resolved(t.Context(), targets, hosts, unknown); err != nil || len(got.Entries) != 2 || ttl != time.Minute {
		t.Fatalf("got %+v, %v, %v", got, ttl, err)
	}
	s.set(func(network string, query *dns.Msg) *dns.Msg {
		if query.Question[0].Name == "b.test." {
			return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
		}
		return known(network, query)
	})
	if got, ttl, err := srv.resolved(t.Context(), targets, hosts, unknown); err != nil || len(got.Entries) != 2 || got.Bad > 0 || ttl != MinRefresh {
		t.Errorf("one fails: %+v, %v, %v", got, ttl, err)
	}
	hosts["b.test."].again = time.Time{} // a second has passed
	if _, ttl, err := srv.resolved(t.Context(), targets, hosts, unknown); err != nil || ttl != 2*MinRefresh {
		t.Errorf("it fails again: asked after %v, %v", ttl, err)
	}
	hosts["b.test."].again = time.Time{}
	s.set(records(t, "a.test. 60 A 10.0.0.1"))
	if got, ttl, err := srv.resolved(t.Context(), targets, hosts, unknown); err != nil || len(got.Entries) != 1 || got.Bad != 1 || ttl != time.Minute {
		t.Errorf("one does not exist: %+v, asked after %v, %v", got, ttl, err)
	}
	if got, _, err := srv.resolved(t.Context(), targets[:1], hosts, unknown); err != nil || len(got.Entries) != 1 || len(hosts) != 1 {
		t.Errorf("one has gone: %+v, %v, and %d hosts", got, err, len(hosts))
	}
}

// FuzzRecords feeds any answer of a name server.
// An answer is bounded, however many addresses the servers of a service have.
func TestSRVTooMany(t *testing.T) {
	t.Parallel()
	const hosts, each = 30, 2500
	s := newNameServer(t)
	s.set(func(network string, query *dns.Msg) *dns.Msg {
		m, q := new(dns.Msg).SetReply(query), query.Question[0]
		if m.Compress = true; network == "udp" {
			m.Truncated = true
			return m
		}
		head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 60}
		switch q.Qtype {
		case dns.TypeSRV:
			for i := range hosts {
				m.Answer = append(m.Answer, &dns.SRV{Hdr: head, Target: fmt.Sprintf("%d.test.", i), Port: 1})
			}
		case dns.TypeA:
			host, _ := strconv.Atoi(strings.TrimSuffix(q.Name, ".test."))
			for i := range each {
				m.Answer = append(m.Answer, &dns.A{Hdr: head, A: net.IPv4(10, byte(host), byte(i>>8), byte(i))})
			}
		}
		return m
	})
	answer, err := next(t, &SRV{Name: "service.test.", Refresh: time.Hour, Resolver: Resolver{Servers: []string{s.addr}}})
	if err == nil || err.Error() != errTooMany().Error() {
		t.Errorf("%d upstreams, %v", len(answer.Entries), err)
	}
}

func FuzzRecords(f *testing.F) {
	m := new(dns.Msg).SetQuestion("x.", dns.TypeSRV)
	m.Answer = append(m.Answer, &dns.SRV{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 1}, Target: "a.", Port: 1})
	packed, _ := m.Pack()
	f.Add(packed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m dns.Msg
		if m.Unpack(data) != nil {
			return
		}
		answer, err := (&SRV{}).named(servers(m.Answer))
		if err != nil {
			t.Error(err)
		}
		var again Collector
		for _, e := range answer.Entries {
			again.Add(e, "")
		}
		if got, err := again.Answer(); got.Bad > 0 || err != nil {
			t.Errorf("%v, %v", got.First, err)
		}
		addresses(m.Answer)
		ttlOf(m.Answer)
	})
}
