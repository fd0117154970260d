package fluent

import (
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/tinylib/msgp/msgp"
)

// helo is what the collector begins with where it asks for a shared key.
type helo struct {
	nonce []byte
	auth  []byte // salt for the password; empty where the collector asks for none
}

// shakeHands proves to the collector that this side knows the shared key, and has the collector prove it.
func (c *Client) shakeHands() error {
	h, err := c.readHelo()
	if err != nil {
		return fmt.Errorf("waiting for the collector's HELO: %w", err)
	}
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // which never fails
	if _, err := c.conn.Write(c.ping(h, salt[:])); err != nil {
		return fmt.Errorf("writing to the collector: %w", err)
	}
	if err := c.readPong(h, salt[:]); err != nil {
		return fmt.Errorf("the collector's PONG: %w", err)
	}
	return nil
}

func digest(parts ...[]byte) string {
	hash := sha512.New()
	for _, part := range parts {
		hash.Write(part)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// ping returns the PING, in which the user and the password are empty where the collector asks for none.
func (c *Client) ping(h helo, salt []byte) []byte {
	user, password := "", ""
	if len(h.auth) > 0 {
		user, password = c.User, digest(h.auth, []byte(c.User), []byte(c.Password))
	}
	b := msgp.AppendArrayHeader(nil, 6)
	b = msgp.AppendString(b, "PING")
	b = msgp.AppendString(b, c.Hostname)
	b = msgp.AppendBytes(b, salt)
	b = msgp.AppendString(b, digest(salt, []byte(c.Hostname), h.nonce, []byte(c.SharedKey)))
	b = msgp.AppendString(b, user)
	return msgp.AppendString(b, password)
}

func (c *Client) readHelo() (h helo, err error) {
	if err := c.readName("HELO", 2); err != nil {
		return h, err
	}
	fields, err := c.reader.ReadMapHeader()
	if err != nil {
		return h, err
	}
	if fields > 16 {
		return h, fmt.Errorf("%d options, expected at most 16", fields)
	}
	for range fields {
		name, err := c.reader.ReadString()
		if err != nil {
			return h, err
		}
		switch name {
		case "nonce":
			h.nonce, err = c.readRaw()
		case "auth":
			h.auth, err = c.readRaw()
		default:
			err = c.reader.Skip()
		}
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

// readRaw reads bytes, which old collectors send as a text.
func (c *Client) readRaw() ([]byte, error) {
	kind, err := c.reader.NextType()
	if err != nil {
		return nil, err
	}
	if kind == msgp.StrType {
		return c.reader.ReadStringAsBytes(nil)
	}
	return c.reader.ReadBytesLimit(nil, largestAnswer)
}

func (c *Client) readName(want string, fields uint32) error {
	n, err := c.reader.ReadArrayHeader()
	if err != nil {
		return err
	}
	name, err := c.reader.ReadString()
	if err != nil {
		return err
	}
	if name != want || n < fields {
		return fmt.Errorf("%q with %d fields, expected %s with %d", shortened(name), n, want, fields)
	}
	return nil
}

func (c *Client) readPong(h helo, salt []byte) error {
	if err := c.readName("PONG", 5); err != nil {
		return err
	}
	accepted, err := c.reader.ReadBool()
	if err != nil {
		return err
	}
	reason, err := c.reader.ReadString()
	if err != nil {
		return err
	}
	hostname, err := c.reader.ReadString()
	if err != nil {
		return err
	}
	proof, err := c.reader.ReadString()
	if err != nil {
		return err
	}
	if !accepted {
		return fmt.Errorf("it refuses the shared key, the user or the password: %q", shortened(reason))
	}
	want := digest(salt, []byte(hostname), h.nonce, []byte(c.SharedKey))
	if subtle.ConstantTimeCompare([]byte(proof), []byte(want)) != 1 {
		return errors.New("it does not know the shared key")
	}
	return nil
}

// shortened returns what a log may have of a text that a collector sends.
func shortened(text string) string {
	const most = 200
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}
