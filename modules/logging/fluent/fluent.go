// Package fluent is a client of the Forward protocol, version 1, which Fluentd, Fluent Bit and others accept logs by:
// https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1
package fluent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// Client sends batches over one connection, which it makes when there is something to send. One goroutine uses it.
type Client struct {
	// Network and Address are those of [net.Dialer]. Required.
	Network, Address string
	// TLS is how TLS is spoken with the collector; nil for no TLS.
	TLS *tls.Config
	// Tag is what the collector knows the entries by. Required.
	Tag string
	// SharedKey has both sides prove that they know it. Empty: the collector asks for none.
	SharedKey string
	// User and Password are sent, hashed, to a collector that asks for them besides the shared key.
	User, Password string
	// Hostname is the name of this machine in the handshake.
	Hostname string
	// NoAck takes a batch for sent when the system has it. By default it is when the collector has said so.
	NoAck bool

	conn   net.Conn
	reader *msgp.Reader
	buffer []byte
}

// largestAnswer bounds the texts in what a collector answers.
const largestAnswer = 64 << 10

// Send implements [delivery.Sender].
func (c *Client) Send(ctx context.Context, batch []delivery.Entry) delivery.Result {
	if err := c.send(ctx, batch); err != nil {
		c.disconnect()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
		return delivery.Result{Retry: batch, Err: err}
	}
	return delivery.Result{}
}

func (c *Client) send(ctx context.Context, batch []delivery.Entry) error {
	if err := c.connect(ctx); err != nil {
		return err
	}
	// A connection that ends with ctx ends what reads from it or writes to it.
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	chunk := ""
	if !c.NoAck {
		chunk = newChunk()
	}
	c.buffer = appendMessage(c.buffer[:0], c.Tag, chunk, batch)
	if _, err := c.conn.Write(c.buffer); err != nil {
		return fmt.Errorf("writing to the collector: %w", err)
	}
	if c.NoAck {
		return nil
	}
	return c.readAck(chunk)
}

// appendMessage appends a batch in the mode PackedForward, which all collectors know: a tag, the entries in one piece, and options.
func appendMessage(b []byte, tag, chunk string, batch []delivery.Entry) []byte {
	var packed []byte
	for i := range batch {
		packed = appendEntry(packed, &batch[i])
	}
	b = msgp.AppendArrayHeader(b, 3)
	b = msgp.AppendString(b, tag)
	b = msgp.AppendBytes(b, packed)
	options := uint32(1)
	if chunk != "" {
		options++
	}
	b = msgp.AppendMapHeader(b, options)
	if chunk != "" {
		b = msgp.AppendString(b, "chunk")
		b = msgp.AppendString(b, chunk)
	}
	b = msgp.AppendString(b, "size")
	return msgp.AppendInt(b, len(batch))
}

// newChunk returns a name for a message, by which the collector acknowledges it: 128 bits in base64, as the specification has it.
func newChunk() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // which never fails
	return base64.StdEncoding.EncodeToString(id[:])
}

// readAck waits until the collector says that it has the message.
func (c *Client) readAck(chunk string) error {
	fields, err := c.reader.ReadMapHeader()
	if err != nil {
		return fmt.Errorf("waiting for the collector's acknowledgement: %w", err)
	}
	if fields > 16 {
		return fmt.Errorf("the collector's acknowledgement has %d fields, expected one", fields)
	}
	acknowledged := ""
	for range fields {
		name, err := c.reader.ReadString()
		if err != nil {
			return fmt.Errorf("reading the collector's acknowledgement: %w", err)
		}
		if name == "ack" {
			acknowledged, err = c.reader.ReadString()
		} else {
			err = c.reader.Skip()
		}
		if err != nil {
			return fmt.Errorf("reading the collector's acknowledgement: %w", err)
		}
	}
	if acknowledged != chunk {
		return errors.New("the collector acknowledges another message than it was sent")
	}
	return nil
}

// connect makes a connection, unless there is one.
func (c *Client) connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
	conn, err := dialer.DialContext(ctx, c.Network, c.Address)
	if err != nil {
		return fmt.Errorf("connecting to the collector: %w", err)
	}
	if c.TLS != nil {
		encrypted := tls.Client(conn, c.TLS)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			conn.Close()
			return fmt.Errorf("TLS with the collector: %w", err)
		}
		conn = encrypted
	}
	c.conn, c.reader = conn, msgp.NewReader(conn)
	c.reader.SetMaxStringLength(largestAnswer)
	if c.SharedKey == "" {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return c.shakeHands()
}

func (c *Client) disconnect() {
	if c.conn != nil {
		c.conn.Close()
		c.conn, c.reader = nil, nil
	}
}

// Close implements [delivery.Sender].
func (c *Client) Close() { c.disconnect() }

// Interface guards
var _ delivery.Sender = (*Client)(nil)
