package discovery

import (
	"reflect"
	"testing"

	"github.com/miekg/dns"
)

// said makes a server answer every question with these records of its type or aliases, whoever they are of.
func said(t *testing.T, zone ...string) func(string, *dns.Msg) *dns.Msg {
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
		for _, record := range all {
			if kind := record.Header().Rrtype; kind == query.Question[0].Qtype || kind == dns.TypeCNAME {
				m.Answer = append(m.Answer, record)
			}
		}
		return m
	}
}

// Records count only if they are of the name that was asked for, or of one that its CNAME records lead to.
func TestRecordsOfOtherNames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ zone, want []string }{
		"its own":           {[]string{"db.test. 60 A 10.0.0.1", "evil.test. 60 A 10.6.6.6"}, []string{"10.0.0.1"}},
		"upper case":        {[]string{"DB.Test. 60 A 10.0.0.1"}, []string{"10.0.0.1"}},
		"a chain":           {[]string{"db.test. 60 CNAME a.test.", "A.test. 60 CNAME b.test.", "b.test. 60 A 10.0.0.1", "evil.test. 60 A 10.6.6.6"}, []string{"10.0.0.1"}},
		"a chain backwards": {[]string{"b.test. 60 A 10.0.0.1", "a.test. 60 CNAME b.test.", "db.test. 60 CNAME a.test."}, []string{"10.0.0.1"}},
		"a circle":          {[]string{"db.test. 60 CNAME a.test.", "a.test. 60 CNAME db.test."}, nil},
		"another chain":     {[]string{"evil.test. 60 CNAME a.test.", "a.test. 60 A 10.6.6.6"}, nil},
		"another class":     {[]string{"db.test. 60 CH A 10.6.6.6"}, nil},
		"none of its own":   {[]string{"evil.test. 60 A 10.6.6.6"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newNameServer(t)
			s.set(said(t, c.zone...))
			found, err := lookUp(t, &Resolver{Servers: []string{s.addr}}, "db.test", dns.TypeA)
			if !reflect.DeepEqual(found, c.want) || isNotFound(err) != (c.want == nil) {
				t.Errorf("%v, %v", found, err)
			}
		})
	}
}

// A service has the servers of its own records only.
func TestSRVOfAnotherName(t *testing.T) {
	t.Parallel()
	s := newNameServer(t)
	s.set(said(t, "_db._tcp.test. 60 SRV 1 1 7001 a.test.", "evil.test. 1 SRV 0 1 7666 evil.test.", "a.test. 60 A 10.0.0.1", "evil.test. 60 A 10.6.6.6"))
	got, err := next(t, &SRV{Name: "_db._tcp.test", Resolver: Resolver{Servers: []string{s.addr}}})
	if want := []Entry{{Address: "10.0.0.1:7001", Weight: 1, Host: "a.test."}}; err != nil || !reflect.DeepEqual(got.Entries, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
