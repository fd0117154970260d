package network

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// TestSocketOptions reads the options of accepted connections back from the kernel.
func TestSocketOptions(t *testing.T) {
	t.Parallel()
	type options struct{ enabled, idle, interval, count int }
	defaults := options{1, 15, 15, 9}
	failed := errors.New("failed")

	for name, test := range map[string]struct {
		cfg  net.ListenConfig
		want options
	}{
		"defaults":       {net.ListenConfig{}, defaults},
		"period":         {net.ListenConfig{KeepAlive: 1500 * time.Millisecond}, options{1, 2, 15, 9}},
		"off":            {net.ListenConfig{KeepAlive: -1}, options{enabled: 0}},
		"config":         {net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 7 * time.Second, Interval: 3 * time.Second, Count: 2}}, options{1, 7, 3, 2}},
		"config wins":    {net.ListenConfig{KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{Enable: true}}, defaults},
		"outer control":  {net.ListenConfig{Control: setIdle(33)}, defaults},
		"system default": {net.ListenConfig{Control: setIdle(33), KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: -1}}, options{1, 33, 15, 9}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := acceptOne(t, test.cfg)
			got := options{enabled: option(t, conn, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)}
			if got.enabled != 0 {
				got.idle = option(t, conn, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
				got.interval = option(t, conn, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL)
				got.count = option(t, conn, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if option(t, conn, syscall.IPPROTO_TCP, syscall.TCP_NODELAY) != 1 {
				t.Error("TCP_NODELAY is off")
			}
			if protocol := option(t, conn, syscall.SOL_SOCKET, syscall.SO_PROTOCOL); protocol != syscall.IPPROTO_TCP {
				t.Errorf("protocol %d", protocol)
			}
		})
	}

	cfg := net.ListenConfig{Control: func(string, string, syscall.RawConn) error { return failed }}
	if _, err := listenWith(config(t), t, freeAddress(t), cfg); !errors.Is(err, failed) {
		t.Errorf("an error of the outer control: %v", err)
	}
}

func setIdle(seconds int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, conn syscall.RawConn) error {
		return conn.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, seconds)
		})
	}
}

func acceptOne(t *testing.T, cfg net.ListenConfig) *Conn {
	t.Helper()
	g, err := listenWith(config(t), t, freeAddress(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	client, err := net.Dial("tcp", g.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	conn, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*Conn)
}

func option(t *testing.T, conn *Conn, level, name int) (value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = syscall.GetsockoptInt(int(fd), level, name) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return value
}
