package ratelimit

import (
	"net/netip"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// What the handler adds to a connection that is admitted, and to one that is refused, without what its end costs.
func BenchmarkDecide(b *testing.B) {
	for name, config := range map[string]string{
		"rate":           `{"name": "bench1", "connections": [{"rate": "1000000000/s"}]}`,
		"rate and count": `{"name": "bench2", "connections": [{"rate": "1000000000/s"}], "concurrent": [{"max": 1000000000}]}`,
		"refused":        `{"name": "bench3", "connections": [{"rate": "1/d", "burst": 1}]}`,
	} {
		b.Run(name, func(b *testing.B) {
			h, _ := provision(b, config)
			v := &visitor{Arrival: &session.Arrival{Network: "tcp", Listener: ":8080", Client: netip.MustParseAddrPort("192.0.2.1:1")}}
			b.ReportAllocs()
			for b.Loop() {
				_, held, _ := h.decide(v)
				held.release()
			}
		})
	}
}
