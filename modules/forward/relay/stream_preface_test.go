package relay

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
)

const preface = "PROXY UNKNOWN\r\n"

func prefaced(c *Config) { c.Preface = []byte(preface) }

// reads checks what comes next at an end.
func (s *session) reads(from io.Reader, want string) {
	s.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != want {
		s.Fatalf("read %q, %v, want %q", got[:n], err, want)
	}
}

// A server that speaks first hears of the client at once.
func TestPrefaceDoesNotWaitForTheClient(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t, prefaced)
		s.reads(s.upstream, preface)
		_, _ = io.WriteString(s.upstream, "220 hello")
		s.reads(s.client, "220 hello")
		if up := s.relay.Stats().BytesUp; up != 0 {
			t.Errorf("%d bytes up before the client has sent anything", up)
		}
		_, _ = io.WriteString(s.client, "EHLO")
		s.reads(s.upstream, "EHLO")
		s.client.CloseWrite()
		_, _ = io.ReadAll(s.upstream)
		s.upstream.CloseWrite()
		if r := s.want(ClientFIN); r.BytesUp != 4 || r.BytesDown != 9 {
			t.Errorf("%+v", r.Stats)
		}
	})
}

// What the client has sent by then comes right behind it, and nothing is lost or counted twice, however the client has ended.
func TestPrefaceAndWhatTheClientHasSent(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		for name, c := range map[string]struct{ prefetched, sent, want string }{
			"nothing":    {"", "", ""},
			"sent":       {"", "hello", "hello"},
			"prefetched": {"hello ", "", "hello "},
			"both":       {"hello ", "world", "hello world"},
		} {
			ln := p.listen(t)
			s := p.prepare(t, only(ln.Addr()), prefaced, func(c2 *Config) { c2.Prefetched = []byte(c.prefetched) })
			_, _ = io.WriteString(s.client, c.sent)
			s.client.CloseWrite()
			s.run()
			s.acceptFrom(ln)
			got, err := io.ReadAll(s.upstream)
			if err != nil || string(got) != preface+c.want {
				t.Errorf("%s: the upstream got %q, %v", name, got, err)
			}
			s.upstream.CloseWrite()
			if r := s.want(ClientFIN); r.BytesUp != int64(len(c.want)) {
				t.Errorf("%s: %d bytes up, want %d", name, r.BytesUp, len(c.want))
			}
		}
	})
}

// A client that was reset meanwhile resets the upstream, as without a preface.
func TestPrefaceOfAClientThatWasReset(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		s := p.prepare(t, only(ln.Addr()), prefaced)
		_ = s.client.(*net.TCPConn).SetLinger(0)
		s.client.Close()
		s.run()
		s.acceptFrom(ln)
		_, _ = io.ReadAll(s.upstream)
		if r := s.want(ClientReset); r.BytesUp != 0 {
			t.Errorf("%d bytes up", r.BytesUp)
		}
	})
}

// Bulk is moved as without a preface, and no byte of it is missing where much was prefetched.
func TestPrefaceAndBulk(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		const prefetched, size = 150_000, 8 << 20
		all := bytesOf(1, size)
		pacer := &bucketful{rate: 1e12, burst: 1 << 20}
		s := p.open(t, prefaced, pacedBy(pacer, nil), func(c *Config) { c.Prefetched = slices.Clone(all[:prefetched]) })
		var both sync.WaitGroup
		both.Go(func() {
			_, _ = s.client.Write(all[prefetched:])
			s.client.CloseWrite()
		})
		s.reads(s.upstream, preface)
		s.mustReceive(s.upstream, 1, size)
		both.Wait()
		_, _ = io.ReadAll(s.upstream)
		s.upstream.CloseWrite()
		r := s.want(ClientFIN)
		if r.BytesUp != size || (r.Spliced > 0) != (p.spliced && readsRaw) {
			t.Errorf("%+v", r.Stats)
		}
		if pacer.moved != size {
			t.Errorf("the pacer counts %d bytes, want %d", pacer.moved, size)
		}
	})
}

// Each upstream that is connected gets it, and one that is not costs none.
func TestPrefaceOfEachUpstream(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		dead, ln := p.listen(t), p.listen(t)
		dead.Close()
		s := p.start(t, only(dead.Addr(), ln.Addr()), prefaced, func(c *Config) { c.Prefetched = []byte("hello") })
		s.acceptFrom(ln)
		s.reads(s.upstream, preface+"hello")
		s.exchange(3)
	})
}
