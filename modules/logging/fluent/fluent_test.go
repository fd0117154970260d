package fluent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// hang is how long a test waits for what should come at once.
const hang = 30 * time.Second

// serve has f serve each connection, and returns the address.
func serve(t *testing.T, f func(conn net.Conn, r *msgp.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, f)
}

func serveOn(t *testing.T, ln net.Listener, f func(conn net.Conn, r *msgp.Reader)) string {
	t.Helper()
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				f(conn, msgp.NewReader(conn))
			}()
		}
	}()
	return ln.Addr().String()
}

// message is what a collector gets.
type message struct {
	tag, chunk string
	size       int
	records    []map[string]any
}

// readMessage reads a message of the mode PackedForward.
func readMessage(r *msgp.Reader) (m message, err error) {
	v, err := r.ReadIntf()
	if err != nil {
		return m, err
	}
	parts, ok := v.([]any)
	if !ok || len(parts) != 3 {
		return m, fmt.Errorf("%v is no message", v)
	}
	m.tag = parts[0].(string)
	options := parts[2].(map[string]any)
	m.chunk, _ = options["chunk"].(string)
	m.size = int(options["size"].(int64))
	for packed := parts[1].([]byte); len(packed) > 0; {
		var record map[string]any
		record, packed, err = msgp.ReadMapStrIntfBytes(packed[1+10:], nil)
		if err != nil {
			return m, err
		}
		m.records = append(m.records, record)
	}
	return m, nil
}

func ack(conn net.Conn, chunk string) {
	b := msgp.AppendMapHeader(nil, 2)
	b = msgp.AppendString(b, "other")
	b = msgp.AppendInt(b, 1)
	b = msgp.AppendString(b, "ack")
	_, _ = conn.Write(msgp.AppendString(b, chunk))
}

func batch(n int) (all []delivery.Entry) {
	for i := range n {
		all = append(all, delivery.Entry{Line: fmt.Appendf(nil, `{"n":%d}`, i), Arrived: time.Now(), ID: uint64(i)})
	}
	return all
}

func client(t *testing.T, addr string) *Client {
	t.Helper()
	c := &Client{Network: "tcp", Address: addr, Tag: "gate", Hostname: "gateway"}
	t.Cleanup(c.Close)
	return c
}

func send(t *testing.T, c *Client, n int) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	r := c.Send(ctx, batch(n))
	if ctx.Err() != nil {
		t.Fatal("it hangs")
	}
	if (r.Err != nil) != (len(r.Retry) == n) || r.Rejected != 0 {
		t.Fatalf("%+v", r)
	}
	return r.Err
}

// A batch is sent when the collector has said so, and one connection takes many.
func TestAcknowledged(t *testing.T) {
	t.Parallel()
	got := make(chan message, 10)
	connections := make(chan struct{}, 10)
	c := client(t, serve(t, func(conn net.Conn, r *msgp.Reader) {
		connections <- struct{}{}
		for {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			got <- m
			ack(conn, m.chunk)
		}
	}))
	for n := 1; n < 4; n++ {
		if err := send(t, c, n); err != nil {
			t.Fatal(err)
		}
		if m := <-got; m.tag != "gate" || m.size != n || len(m.records) != n || m.records[n-1]["n"] != int64(n-1) || len(m.chunk) != 24 {
			t.Errorf("%+v", m)
		}
	}
	if len(connections) != 1 {
		t.Errorf("%d connections", len(connections))
	}
}

// Without acknowledgements a collector that says nothing has what was written.
func TestNoAck(t *testing.T) {
	t.Parallel()
	got := make(chan message, 1)
	c := client(t, serve(t, func(_ net.Conn, r *msgp.Reader) {
		m, _ := readMessage(r)
		got <- m
	}))
	c.NoAck = true
	if err := send(t, c, 3); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m.chunk != "" || len(m.records) != 3 {
		t.Errorf("%+v", m)
	}
}

// A collector that resets, says something else or nothing leaves the batch to be sent again, over another connection.
func TestNotAcknowledged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer func(conn net.Conn, chunk string)
		want   string
	}{
		"reset":      {func(conn net.Conn, _ string) { _ = conn.(*net.TCPConn).SetLinger(0) }, "acknowledgement"},
		"wrong ack":  {func(conn net.Conn, _ string) { ack(conn, "other") }, "another message"},
		"no ack":     {func(conn net.Conn, _ string) { _, _ = conn.Write(msgp.AppendMapHeader(nil, 0)) }, "another message"},
		"many":       {func(conn net.Conn, _ string) { _, _ = conn.Write(msgp.AppendMapHeader(nil, 1<<30)) }, "1073741824 fields"},
		"no message": {func(conn net.Conn, _ string) { _, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "acknowledgement"},
		"long text": {func(conn net.Conn, _ string) {
			_, _ = conn.Write([]byte{0x81, 0xdb, 0x7f, 0xff, 0xff, 0xff})
		}, "acknowledgement"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := make(chan struct{}, 1)
			first <- struct{}{}
			client := client(t, serve(t, func(conn net.Conn, r *msgp.Reader) {
				m, err := readMessage(r)
				if err != nil {
					return
				}
				select {
				case <-first:
					c.answer(conn, m.chunk)
				default:
					ack(conn, m.chunk)
					_, _ = r.ReadIntf() // until the client closes
				}
			}))
			if err := send(t, client, 2); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if err := send(t, client, 2); err != nil {
				t.Error(err)
			}
		})
	}
}

// One that accepts and never reads, and one that reads and never answers, hold nobody longer than the attempt may take.
func TestStalls(t *testing.T) {
	t.Parallel()
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	for name, key := range map[string]string{"message": "", "handshake": "key"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t, serve(t, func(net.Conn, *msgp.Reader) { <-held }))
			c.SharedKey = key
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			large := batch(1)
			large[0].Line = []byte(strings.Repeat("x", 32<<20)) // more than socket buffers take
			done := make(chan delivery.Result, 1)
			go func() { done <- c.Send(ctx, large) }()
			select {
			case r := <-done:
				if !errors.Is(r.Err, context.DeadlineExceeded) || len(r.Retry) != 1 || c.conn != nil {
					t.Errorf("%v", r.Err)
				}
			case <-time.After(hang):
				t.Fatal("it hangs")
			}
		})
	}
}

// collector has the other side of the handshake.
type collector struct{ key, user, password, name string }

func (k collector) shakeHands(conn net.Conn, r *msgp.Reader) bool {
	nonce, auth := []byte("nonce-of-collector"), []byte("salt-of-password")
	if k.user == "" {
		auth = nil
	}
	b := msgp.AppendArrayHeader(nil, 2)
	b = msgp.AppendString(b, "HELO")
	b = msgp.AppendMapHeader(b, 3)
	b = msgp.AppendString(b, "keepalive")
	b = msgp.AppendBool(b, true)
	b = msgp.AppendString(b, "auth")
	b = msgp.AppendBytes(b, auth)
	b = msgp.AppendString(b, "nonce")
	b = msgp.AppendString(b, string(nonce)) // as old ones do
	_, _ = conn.Write(b)
	v, err := r.ReadIntf()
	if err != nil {
		return false
	}
	ping := v.([]any)
	hostname, salt := ping[1].(string), ping[2].([]byte)
	accepted := ping[0] == "PING" && ping[3] == digest(salt, []byte(hostname), nonce, []byte(k.key)) &&
		(k.user == "" || ping[4] == k.user && ping[5] == digest(auth, []byte(k.user), []byte(k.password)))
	reason := ""
	if !accepted {
		reason = strings.Repeat("no ", 1000)
	}
	b = msgp.AppendArrayHeader(nil, 5)
	b = msgp.AppendString(b, "PONG")
	b = msgp.AppendBool(b, accepted || k.name == "impostor")
	b = msgp.AppendString(b, reason)
	b = msgp.AppendString(b, k.name)
	_, _ = conn.Write(msgp.AppendString(b, digest(salt, []byte(k.name), nonce, []byte(k.key))))
	return accepted
}

func TestSharedKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		server                   collector
		key, user, password, err string
	}{
		"right":          {collector{key: "k", name: "s"}, "k", "", "", ""},
		"wrong":          {collector{key: "k", name: "s"}, "other", "", "", "refuses the shared key"},
		"impostor":       {collector{key: "k", name: "impostor"}, "other", "", "", "does not know the shared key"},
		"user":           {collector{key: "k", name: "s", user: "u", password: "p"}, "k", "u", "p", ""},
		"wrong password": {collector{key: "k", name: "s", user: "u", password: "p"}, "k", "u", "x", "refuses the shared key, the user or the password"},
		"user not asked": {collector{key: "k", name: "s"}, "k", "u", "p", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := client(t, serve(t, func(conn net.Conn, r *msgp.Reader) {
				if !c.server.shakeHands(conn, r) {
					return
				}
				m, _ := readMessage(r)
				ack(conn, m.chunk)
				_, _ = r.ReadIntf()
			}))
			client.SharedKey, client.User, client.Password = c.key, c.user, c.password
			err := send(t, client, 2)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || len(err.Error()) > 500) {
				t.Errorf("got %v, want %s", err, c.err)
			}
		})
	}
}

// A collector that asks for nothing does not begin, which is said.
func TestNoHelo(t *testing.T) {
	t.Parallel()
	c := client(t, serve(t, func(conn net.Conn, _ *msgp.Reader) { _, _ = conn.Write(msgp.AppendArrayHeader(nil, 2)) }))
	c.SharedKey = "key"
	if err := send(t, c, 1); err == nil || !strings.Contains(err.Error(), "HELO") {
		t.Errorf("%v", err)
	}
}

// authority makes a certificate for 127.0.0.1 and a pool that trusts it.
func authority(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, pool := authority(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	addr := serveOn(t, ln, func(conn net.Conn, r *msgp.Reader) {
		if !(collector{key: "k", name: "s"}).shakeHands(conn, r) {
			return
		}
		m, _ := readMessage(r)
		ack(conn, m.chunk)
		_, _ = r.ReadIntf()
	})
	c := client(t, addr)
	c.SharedKey = "k"
	c.TLS = &tls.Config{ServerName: "127.0.0.1"}
	if err := send(t, c, 1); err == nil || !strings.Contains(err.Error(), "TLS with the collector") {
		t.Errorf("an unknown authority: %v", err)
	}
	c.TLS = &tls.Config{ServerName: "127.0.0.1", RootCAs: pool}
	if err := send(t, c, 1); err != nil {
		t.Error(err)
	}
}
