package network

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4subroute"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(greeter))
	caddy.RegisterModule(new(passer))
}

// passer is a handler that lets everybody through.
type passer struct{}

func (*passer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_passer", New: func() caddy.Module { return new(passer) }}
}

func (p *passer) Provision(ctx caddy.Context) error {
	fastpath.Offer(ctx, placement.Find(ctx, "test_passer", "{}"), p)
	return nil
}

func (*passer) Handle(cx *layer4.Connection, next layer4.Handler) error { return next.Handle(cx) }

func (*passer) Serve(*session.Arrival) (next bool) { return true }

// greeter is a handler that tells the client how it came to be called, and as whom it knows the client.
type greeter struct{}

func (*greeter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_greeter", New: func() caddy.Module { return new(greeter) }}
}

func (g *greeter) Provision(ctx caddy.Context) error {
	fastpath.Offer(ctx, placement.Find(ctx, "test_greeter", "{}"), g)
	return nil
}

func (*greeter) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	_, err := fmt.Fprintf(cx, "by layer4: %v", cx.RemoteAddr())
	return err
}

func (*greeter) Serve(a *session.Arrival) (next bool) {
	_, _ = fmt.Fprintf(a.Conn, "directly: %v on %s %s", a.Client, a.Network, a.Listener)
	_ = a.Conn.Close()
	return false
}

func TestListenerServesWhatNeedsNoLayer4Connection(t *testing.T) {
	address := freeAddress(t)
	quiet := `"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}}`
	t.Cleanup(func() { _ = caddy.Stop() })
	for _, c := range []struct{ routes, want string }{
		{`{"handle":[{"handler":"test_greeter"}]}`, "directly: %s on tcp " + address},
		{`{"handle":[{"handler":"test_passer"},{"handler":"test_greeter"}]}`, "directly: %s on tcp " + address},
		{`{"handle":[{"handler":"test_passer"}]},{"handle":[{"handler":"test_greeter"}]}`, "by layer4: %s"},
		{`{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"test_greeter"}]}]}]}`, "by layer4: %s"},
		{`{"handle":[{"handler":"test_greeter"}]}`, "directly: %s on tcp " + address},
	} {
		err := caddy.Load(fmt.Appendf(nil, `{%s,"apps":{"layer4":{"servers":{"s":{"listen":["gate+tcp/%s"],"routes":[%s]}}}}}`,
			quiet, address, c.routes), true)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // one after the other through the same listener
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if want := fmt.Sprintf(c.want, conn.LocalAddr()); string(got) != want || err != nil {
				t.Errorf("%s: got %q, %v, want %q", c.routes, got, err, want)
			}
			_ = conn.Close()
		}
	}
}
