package relay

import (
	"fmt"
	"io"
	"testing"
)

func BenchmarkExchange(b *testing.B) {
	for _, p := range engines {
		for _, size := range []int{64, 4 << 10} {
			b.Run(fmt.Sprintf("%s/%d", p.name, size), func(b *testing.B) {
				s, message := p.open(b), make([]byte, size)
				b.ReportAllocs()
				for b.Loop() {
					pass(b, s.client, s.upstream, message)
					pass(b, s.upstream, s.client, message)
				}
			})
		}
	}
}

func pass(b *testing.B, from io.Writer, to io.Reader, message []byte) {
	if _, err := from.Write(message); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(to, message); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkBulk(b *testing.B) {
	for _, p := range engines {
		b.Run(p.name, func(b *testing.B) {
			const chunk = 1 << 20
			s, source, sink := p.open(b), make([]byte, chunk), make([]byte, chunk)
			go func() {
				for {
					if _, err := s.client.Write(source); err != nil {
						return
					}
				}
			}()
			b.SetBytes(chunk)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.ReadFull(s.upstream, sink); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSession is a connection that moves one byte each way and ends.
func BenchmarkSession(b *testing.B) {
	for _, p := range engines {
		b.Run(p.name, func(b *testing.B) {
			ln, message := p.listen(b), make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				ended := make(chan Result, 1)
				ours, client := p.accept(b)
				go New(Config{
					Client: ours, Next: only(ln.Addr()), Done: func(r Result) { ended <- r },
				}).Run()
				upstream, err := ln.Accept()
				if err != nil {
					b.Fatal(err)
				}
				pass(b, client, upstream, message)
				pass(b, upstream, client, message)
				client.Close()
				upstream.Close()
				<-ended
			}
		})
	}
}
