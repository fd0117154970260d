package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// adminTimeout bounds one request, so that a reload that hangs fails the test.
const adminTimeout = 3 * time.Minute

// attempts is how often a request is sent. Caddy replaces its admin server with each config, and drops a connection that reached
// the previous server without an answer.
const attempts = 5

func (p *Process) do(method, path, contentType string, body []byte) (status int, answer string, err error) {
	for range attempts {
		status, answer, err = p.try(method, path, contentType, body)
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			break
		}
	}
	return status, answer, err
}

// try sends one request on a new connection, so that no idle connection changes the counts of goroutines and descriptors.
func (p *Process) try(method, path, contentType string, body []byte) (int, string, error) {
	client := http.Client{Timeout: adminTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			network := "unix"
			if p.tcp {
				network = "tcp"
			}
			return new(net.Dialer).DialContext(ctx, network, p.admin)
		},
	}}
	host := "127.0.0.1"
	if p.tcp {
		host = p.admin // Caddy looks at it
	}
	req, err := http.NewRequest(method, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Cache-Control", "must-revalidate") // else Caddy ignores a config that did not change
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(answer), err
}

// Get returns what the admin endpoint has at path.
func (p *Process) Get(path string) (string, error) {
	status, body, err := p.do(http.MethodGet, path, "", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("GET %s: status %d: %s", path, status, body)
	}
	return body, err
}

// MustGet is Get for what can't fail.
func (p *Process) MustGet(path string) string {
	p.tb.Helper()
	body, err := p.Get(path)
	if err != nil {
		p.tb.Fatal(err)
	}
	return body
}

// Post sends body (a content type such as text/caddyfile says what it is) and returns status and answer.
func (p *Process) Post(path, contentType string, body []byte) (status int, answer string, err error) {
	return p.do(http.MethodPost, path, contentType, body)
}

// Do sends a request with a JSON body, and returns status and answer.
func (p *Process) Do(method, path, body string) (status int, answer string, err error) {
	return p.do(method, path, "application/json", []byte(body))
}

// Load replaces the config. It may be equal to the running one.
func (p *Process) Load(config JSON) {
	p.tb.Helper()
	if err := p.TryLoad(config); err != nil {
		p.tb.Fatal(err)
	}
}

// TryLoad is Load for a config that may be rejected, and for goroutines other than the test's own.
func (p *Process) TryLoad(config JSON) error {
	status, answer, err := p.do(http.MethodPost, "/load", "application/json", p.encode(config))
	if err != nil {
		return fmt.Errorf("POST /load: %w", err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("POST /load: status %d: %s", status, answer)
	}
	return nil
}

var goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)

// Goroutines returns the number of goroutines, among them the few that answer this request.
func (p *Process) Goroutines() int {
	p.tb.Helper()
	found := goroutineTotal.FindStringSubmatch(p.MustGet("/debug/pprof/goroutine?debug=1"))
	if found == nil {
		p.tb.Fatal("no total in the goroutine profile")
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

// Metrics are the samples of one scrape by name with labels, as in `up{job="a"}`.
type Metrics map[string]float64

// Metrics scrapes the admin endpoint.
func (p *Process) Metrics() Metrics {
	p.tb.Helper()
	metrics := make(Metrics)
	for line := range strings.Lines(p.MustGet("/metrics")) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			p.tb.Fatalf("metrics: %q: %v", line, err)
		}
		metrics[line[:at]] = value
	}
	return metrics
}

// Sum adds up the samples of a metric that have all the labels, each given as `name="value"`.
func (m Metrics) Sum(name string, labels ...string) float64 {
	var sum float64
samples:
	for sample, value := range m {
		if base, _, _ := strings.Cut(sample, "{"); base != name {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(sample, label) {
				continue samples
			}
		}
		sum += value
	}
	return sum
}
