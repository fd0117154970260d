package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// examples are what examples/ shows, by file name; check gets the addresses that stand for the example's fixed ports.
var examples = map[string]func(t *testing.T, addr func(port int) string){
	"quickstart": func(t *testing.T, addr func(port int) string) {
		direct := mustGetPage(t, addr(9000))
		if forwarded := mustGetPage(t, addr(8080)); forwarded != direct || direct == "" {
			t.Errorf("through the port: %q, from the site: %q", forwarded, direct)
		}
	},
	"acl": func(t *testing.T, addr func(port int) string) {
		for port, denied := range map[int][]string{8080: {"127.0.0.2", "127.0.0.7"}, 8081: {"127.0.0.2", "127.0.0.9"}} {
			if page := mustGetPage(t, addr(port)); page != "inside" {
				t.Errorf("port %d: %q", port, page)
			}
			mustLetIn(t, addr(port), false, denied...)
		}
		if got := pageFrom(t, "127.0.0.7", addr(8081)); !strings.HasSuffix(got, "inside") {
			t.Errorf("the one who is allowed: %q", got)
		}
	},
	"acl-site": func(t *testing.T, addr func(port int) string) {
		if page := mustGetPage(t, addr(8080)); page != "welcome" {
			t.Errorf("the site: %q", page)
		}
		if got := pageFrom(t, "127.0.0.2", addr(8080)); got != "" {
			t.Errorf("the one who is denied: %q", got)
		}
	},
	"ratelimit": func(t *testing.T, addr func(port int) string) {
		for i, port := range []int{8080, 8081} {
			for range []int{5, 10}[i] {
				if page := mustGetPage(t, addr(port)); page != "inside" {
					t.Errorf("port %d: %q", port, page)
				}
			}
		}
		if got := pageFrom(t, "127.0.0.1", addr(8080)); got != "" {
			t.Errorf("the sixth one: %q", got)
		}
	},
	"ratelimit-site": func(t *testing.T, addr func(port int) string) {
		for range 3 {
			if page := mustGetPage(t, addr(8080)); page != "welcome" {
				t.Errorf("the site: %q", page)
			}
		}
		if got := pageFrom(t, "127.0.0.1", addr(8080)); !strings.HasPrefix(got, "HTTP/1.1 429 Too Many Requests\r\n") {
			t.Errorf("the fourth one: %q", got)
		}
	},
	"forward": func(t *testing.T, addr func(port int) string) {
		port := addr(8080)
		if pages := []string{mustGetPage(t, port), mustGetPage(t, port)}; !slices.Contains(pages, "first") || !slices.Contains(pages, "second") {
			t.Errorf("two requests were answered by %q: expected both upstreams in turn", pages)
		}
	},
}

// pageFrom asks for a page from an address of this machine, and returns what is answered, if anything.
func pageFrom(t *testing.T, from, addr string) string {
	t.Helper()
	conn, err := dialFrom(from, addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return ""
	}
	must(t, err)
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n") // a client that is denied may be gone already
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

func mustGetPage(t *testing.T, addr string) string {
	t.Helper()
	client := http.Client{Timeout: peerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/")
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET http://%s/: status %d, %v", addr, resp.StatusCode, err)
	}
	return string(body)
}

// Every file in examples/ starts and does what it is for.
func TestExamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../examples/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples (%v)", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			name, kind, _ := strings.Cut(filepath.Base(file), ".")
			check, known := examples[name]
			if !known {
				t.Fatalf("no test knows the example %s", file)
			}
			config, ports := withReservedPorts(t, asJSON(t, file, kind))
			var opts []gate.Option
			if strings.HasSuffix(name, "-site") { // caddy-l4 reads the counters of a connection for its log when HTTP has it already
				opts = append(opts, gate.WithoutRace())
			}
			gate.Start(t, config, opts...)
			check(t, func(port int) string {
				if ports[port] == 0 {
					t.Fatalf("the example does not use port %d", port)
				}
				return gate.Loopback(ports[port])
			})
		})
	}
}

func asJSON(t *testing.T, file, kind string) string {
	t.Helper()
	if kind == "json" {
		data, err := os.ReadFile(file)
		must(t, err)
		return string(data)
	}
	stdout, stderr, code := gate.Run(t, gate.Plain, "adapt", "--config", file, "--adapter", strings.ToLower(kind), "--validate")
	if code != 0 {
		t.Fatalf("caddy adapt: exit code %d: %s", code, stderr)
	}
	if strings.Contains(stderr, "not formatted") {
		t.Errorf("%s is not formatted: %s", file, stderr)
	}
	return stdout
}

var fixedPort = regexp.MustCompile(`:(\d{2,5})"`)

// withReservedPorts replaces every port at the end of a string, and says by which.
func withReservedPorts(t *testing.T, text string) (gate.JSON, map[int]int) {
	t.Helper()
	ports := make(map[int]int)
	text = fixedPort.ReplaceAllStringFunc(text, func(match string) string {
		fixed, _ := strconv.Atoi(fixedPort.FindStringSubmatch(match)[1])
		if ports[fixed] == 0 {
			ports[fixed] = gate.ReservePort(t)
		}
		return fmt.Sprintf(`:%d"`, ports[fixed])
	})
	var config gate.JSON
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return config, ports
}

// writeFile writes a file of the test's own and returns its path.
func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}
