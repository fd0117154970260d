package adminapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

const (
	dialTimeout = 10 * time.Second
	// headTimeout is how long an answer may take to begin. A list is made before it is sent.
	headTimeout = time.Minute
	// answerTimeout is how long an answer may take with all of its body: one that drips for ever is none.
	answerTimeout = 5 * time.Minute
	// maxAnswer bounds an answer: some 600,000 sessions, or a list with as many entries as there may be.
	maxAnswer = 256 << 20
	// maxErrorBody bounds how much of an error is read.
	maxErrorBody = 64 << 10
)

// AddFlags gives a command the flags by which [ClientOf] finds the admin API.
func AddFlags(cmd *cobra.Command) {
	cmd.Flags().StringP("address", "", "", "Address of the admin API: host:port, http://host:port or unix//path")
	cmd.Flags().StringP("config", "c", "", "Config file that has the address of the admin API")
	cmd.Flags().StringP("adapter", "a", "", "Config adapter to apply")
}

// Client sends the requests of commands to the admin API of a running Caddy. It may be used by several goroutines.
type Client struct {
	address   string
	base      string
	maxAnswer int64
	http      http.Client
}

// ClientOf returns a client for the admin API at --address, or else the one that the config in --config has, or else Caddy's default.
func ClientOf(flags caddycmd.Flags) (*Client, error) {
	given := flags.String("address")
	if given != "" {
		var err error
		if given, err = Address(given); err != nil {
			return nil, fmt.Errorf("--address: %w", err)
		}
	}
	address, err := caddycmd.DetermineAdminAPIAddress(given, nil, flags.String("config"), flags.String("adapter"))
	if err != nil {
		return nil, err
	}
	return NewClient(address)
}

// NewClient returns a client for an address in the form that Caddy's configs have.
func NewClient(address string) (*Client, error) {
	parsed, err := caddy.ParseNetworkAddress(address)
	if err != nil || parsed.PortRangeSize() > 1 || parsed.IsFdNetwork() {
		return nil, fmt.Errorf("admin API: %q: expected an address that can be connected to, such as localhost:2019 or unix//run/caddy.sock", address)
	}
	c := &Client{address: address, base: "http://" + parsed.JoinHostPort(0), maxAnswer: maxAnswer}
	if parsed.IsUnixNetwork() {
		parsed.Host, _, _ = strings.Cut(parsed.Host, "|") // the permissions of the socket
		c.base = "http://127.0.0.1"
	}
	c.http.Timeout = answerTimeout
	// The admin API redirects nobody. What does is something else, and may turn what was asked for into another request.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	dialer := &net.Dialer{Timeout: dialTimeout}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, parsed.Network, parsed.JoinHostPort(0))
		},
		ResponseHeaderTimeout: headTimeout,
		DisableKeepAlives:     true, // Caddy replaces its admin server with each config, and drops idle connections
	}
	return c, nil
}

// Address returns where the client connects to.
func (c *Client) Address() string { return c.address }

// Do returns what the admin API answers. The body, which may be nil, is JSON. An answer that is an error is a [*Refusal].
func (c *Client) Do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	answer, err := c.Open(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	return io.ReadAll(answer)
}

// Open is Do for an answer that may be long. The caller closes it.
func (c *Client) Open(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.base != "http://127.0.0.1" {
		req.Header.Set("Origin", c.base)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var request *url.Error
		if errors.As(err, &request) {
			err = request.Err // without the URL, which may not be where the connection goes
		}
		return nil, fmt.Errorf("admin API at %q: %w", c.address, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return &answerBody{resp.Body, c.address, c.maxAnswer}, nil
	}
	defer resp.Body.Close()
	return nil, refusalOf(resp)
}

// answerBody is the body of an answer. It ends with an error where it is longer than an answer may be.
type answerBody struct {
	io.ReadCloser
	address string
	left    int64
}

func (b *answerBody) Read(to []byte) (int, error) {
	n, err := b.ReadCloser.Read(to)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("admin API at %q: the answer is too long", b.address)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("admin API at %q: reading the answer: %w", b.address, err)
	}
	return n, err
}

// Refusal is an answer of the admin API that is an error.
type Refusal struct {
	Status int    // of HTTP
	Text   string // as the API says it, with nothing in it that could command a terminal
}

func (r *Refusal) Error() string { return fmt.Sprintf("HTTP %d: %s", r.Status, r.Text) }

func refusalOf(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return fmt.Errorf("HTTP %d: reading the error: %w", resp.StatusCode, err)
	}
	var said struct {
		Error string `json:"error"`
	}
	switch {
	case json.Unmarshal(text, &said) == nil && said.Error != "":
	case resp.StatusCode < http.StatusBadRequest:
		said.Error = fmt.Sprintf("redirected to %q: expected the admin API of a Caddy, which redirects nobody", resp.Header.Get("Location"))
	case resp.StatusCode == http.StatusNotFound:
		said.Error = resp.Request.URL.Path + ": expected the admin API of a Caddy that has Portgate, and a version with this"
	default:
		said.Error = cmp.Or(strings.TrimSpace(string(text)), http.StatusText(resp.StatusCode))
	}
	return &Refusal{resp.StatusCode, escape(said.Error)}
}
