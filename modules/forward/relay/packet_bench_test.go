package relay

import (
	"fmt"
	"testing"
)

// BenchmarkPacketExchange is a datagram to the upstream and one back.
func BenchmarkPacketExchange(b *testing.B) {
	for _, p := range packetEngines {
		for _, size := range []int{64, 1400, 60_000} {
			b.Run(fmt.Sprintf("%s/%d", p.name, size), func(b *testing.B) {
				s, message := p.open(b), make([]byte, size)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.client.Write(message); err != nil {
						b.Fatal(err)
					}
					if _, _, err := s.upstream.ReadFromUDPAddrPort(message); err != nil {
						b.Fatal(err)
					}
					if _, err := s.upstream.WriteToUDPAddrPort(message, s.peer); err != nil {
						b.Fatal(err)
					}
					if _, err := s.client.Read(message); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkReplies is a server that sends many datagrams for each one of the client.
func BenchmarkReplies(b *testing.B) {
	const burst = 50
	for _, p := range packetEngines {
		b.Run(p.name, func(b *testing.B) {
			s, message := p.open(b), make([]byte, 1000)
			b.SetBytes(burst * int64(len(message)))
			b.ReportAllocs()
			for b.Loop() {
				for range burst {
					if _, err := s.upstream.WriteToUDPAddrPort(message, s.peer); err != nil {
						b.Fatal(err)
					}
				}
				for range burst {
					if _, err := s.client.Read(message); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkPacketSession is a session of one datagram each way, as DNS has them.
func BenchmarkPacketSession(b *testing.B) {
	for _, p := range packetEngines {
		b.Run(p.name, func(b *testing.B) {
			sock, message := p.listen(b), make([]byte, 64)
			ended := make(chan PacketResult, 1)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				ours, client := p.accept(b, p.host)
				b.StartTimer()
				r := NewPacket(PacketConfig{
					Client: ours, Next: always(sock.LocalAddr()), MaxReplies: 1,
					Done: func(r PacketResult) { ended <- r },
				})
				if p.loop {
					r.Run()
				} else {
					go r.Run()
				}
				if _, err := client.Write(message); err != nil {
					b.Fatal(err)
				}
				_, peer, err := sock.ReadFromUDPAddrPort(message)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := sock.WriteToUDPAddrPort(message, peer); err != nil {
					b.Fatal(err)
				}
				<-ended
				b.StopTimer()
				client.Close()
				queuedOf(ours).sock.Close()
				b.StartTimer()
			}
		})
	}
}
