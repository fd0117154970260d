package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// quickstart runs examples/quickstart.Caddyfile, with free ports in place of its own, and fetches
// the page through the forwarded port as the README says.
func quickstart(t *testing.T, caddy string) {
	t.Helper()
	forwarded, page := freePorts(t)
	config := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(config, quickstartOn(t, forwarded, page), 0o600); err != nil {
		t.Fatal(err)
	}

	cmd := command(t, caddy, "run", "--adapter", "caddyfile", "--config", config)
	var printed bytes.Buffer // read only after the process has ended
	cmd.Stdout, cmd.Stderr = &printed, &printed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, ended := context.WithTimeout(t.Context(), time.Minute)
	go func() {
		_ = cmd.Wait()
		ended()
	}()
	status, body, err := fetch(ctx, "http://127.0.0.1:"+forwarded+"/")
	_ = cmd.Process.Signal(os.Interrupt)
	<-ctx.Done()

	if err != nil {
		t.Fatalf("%v; caddy printed\n%s", err, &printed)
	}
	if status != http.StatusOK || !strings.Contains(body, "Portgate") {
		t.Errorf("answer is %d %q, want the quickstart's page", status, body)
	}
}

// quickstartOn returns the example with its ports replaced and without an admin endpoint, whose
// port may be taken.
func quickstartOn(t *testing.T, forwarded, page string) []byte {
	t.Helper()
	data, err := os.ReadFile(example("quickstart.Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{":8080", ":9000", "\n{\n"} {
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("quickstart.Caddyfile has no %q any more: this test needs to follow", old)
		}
	}
	return []byte(strings.NewReplacer(
		":8080", ":"+forwarded,
		":9000", ":"+page,
		"\n{\n", "\n{\n\tadmin off\n",
	).Replace(string(data)))
}

// fetch tries until it gets an answer or the context ends.
func fetch(ctx context.Context, url string) (status int, body string, err error) {
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, "", err
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			data, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			return response.StatusCode, string(data), err
		}
		select {
		case <-ctx.Done():
			return 0, "", err
		case <-time.After(20 * time.Millisecond): // it is still starting
		}
	}
}

// freePorts returns two different ports that were free just now.
func freePorts(t *testing.T) (first, second string) {
	t.Helper()
	var ports [2]string
	for i := range ports {
		listener, err := net.Listen("tcp", ":0") //nolint:gosec // as public as the quickstart's port, and closed at once
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		_, ports[i], err = net.SplitHostPort(listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
	}
	return ports[0], ports[1]
}
