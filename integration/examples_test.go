package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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

// example tests a file in examples/. It starts what the example forwards to, then the example, and sends clients through it.
type example func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses)

// addresses returns the address that stands for a fixed port of an example.
type addresses func(port int) string

// examples has a test for each file in examples/, by its name without the extension.
var examples = map[string]example{
	"quickstart": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start()
		direct := mustGetPage(t, addr(9000))
		if forwarded := mustGetPage(t, addr(8080)); forwarded != direct || direct == "" {
			t.Errorf("through the port: %q, from the site: %q", forwarded, direct)
		}
	},
	"acl": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start()
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
	"acl-site": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start(gate.WithoutRace()) // caddy-l4 reads the counters of a connection for its log while HTTP uses it
		if page := mustGetPage(t, addr(8080)); page != "welcome" {
			t.Errorf("the site: %q", page)
		}
		if got := pageFrom(t, "127.0.0.2", addr(8080)); got != "" {
			t.Errorf("the one who is denied: %q", got)
		}
	},
	"status-site": exampleStatusSite,
	"ratelimit": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start()
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
	"ratelimit-site": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start(gate.WithoutRace()) // caddy-l4 reads the counters of a connection for its log while HTTP uses it
		for range 3 {
			if page := mustGetPage(t, addr(8080)); page != "welcome" {
				t.Errorf("the site: %q", page)
			}
		}
		if got := pageFrom(t, "127.0.0.1", addr(8080)); !strings.HasPrefix(got, "HTTP/1.1 429 Too Many Requests\r\n") {
			t.Errorf("the fourth one: %q", got)
		}
	},
	"forward": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start()
		port := addr(8080)
		if pages := []string{mustGetPage(t, port), mustGetPage(t, port)}; !slices.Contains(pages, "first") || !slices.Contains(pages, "second") {
			t.Errorf("two requests were answered by %q: expected both upstreams in turn", pages)
		}
	},
	"upstreams": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start()
		pages := make(map[string]int)
		for range 12 {
			pages[mustGetPage(t, addr(8080))]++
		}
		if pages["large"] != 8 || pages["small"] != 4 {
			t.Errorf("12 requests were answered by %v: expected 2 to 1, and none by the backup", pages)
		}
	},
	"discovery": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		start()
		gate.Eventually(t, peerTimeout, func() error {
			if page := mustGetPage(t, addr(8080)); page != "discovered" {
				return fmt.Errorf("%q answers", page)
			}
			return nil
		})
	},
	"queue": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		p := start()
		first := dial(t, addr(8080)) // there is no server yet
		served := []*net.TCPConn{first}
		serveAt(t, addr(9001), echo)
		mustExchange(t, first)
		for range 9 {
			conn := dial(t, addr(8080))
			mustExchange(t, conn)
			served = append(served, conn)
		}
		waits := dial(t, addr(8080))
		mustQueue(t, p, 1)
		served[5].Close()
		mustExchange(t, waits)
	},
	"breaker": exampleBreaker,
	"health": func(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
		p := start()
		waitForLog(t, p, "upstream is down, sessions try others first")
		for range 6 {
			if page := mustGetPage(t, addr(8080)); page != "first" {
				t.Errorf("answered by %q, whose checks fail", page)
			}
		}
	},
	"tls":             exampleTLS,
	"tls-postgres":    exampleTLSPostgres,
	"sni":             exampleSNI,
	"dns":             exampleDNS,
	"port-ranges":     examplePortRanges,
	"prometheus":      examplePrometheus,
	"collectors":      exampleCollectors,
	"proxy-protocol":  exampleProxyProtocol,
	"systemd":         exampleSystemd,
	"systemd-sockets": exampleSystemdSockets,
	"http-and-layer4": exampleHTTPAndLayer4,
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
	page, err := getPage(addr)
	must(t, err)
	return page
}

// getPage gets the page of a web server, over a connection of its own.
func getPage(addr string) (page string, err error) {
	client := http.Client{Timeout: peerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET http://%s/: status %d", addr, resp.StatusCode)
	}
	return string(body), err
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
			test, known := examples[name]
			if !known {
				t.Fatalf("no test knows the example %s", file)
			}
			config, ports := withReservedPorts(t, asJSON(t, file, kind))
			start := func(opts ...gate.Option) *gate.Process { return gate.Start(t, config, opts...) }
			test(t, start, func(port int) string {
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

var fixedPorts = regexp.MustCompile(`:(\d{2,5})(?:-(\d{2,5}))?"`)

// withReservedPorts replaces every port and every range of ports at the end of a string, and says by which.
func withReservedPorts(t *testing.T, text string) (gate.JSON, map[int]int) {
	t.Helper()
	ports := make(map[int]int)
	// Ranges come first: their ports have to be in a row, also where another part of the config names one of them alone.
	for _, ranges := range []bool{true, false} {
		for _, found := range fixedPorts.FindAllStringSubmatch(text, -1) {
			first, _ := strconv.Atoi(found[1])
			last, err := strconv.Atoi(found[2])
			if isRange := err == nil; isRange != ranges || ports[first] != 0 {
				continue
			}
			last = max(last, first)
			reserved := gate.ReserveRange(t, last-first+1)
			for port := first; port <= last; port++ {
				ports[port] = reserved + port - first
			}
		}
	}
	text = fixedPorts.ReplaceAllStringFunc(text, func(match string) string {
		found := fixedPorts.FindStringSubmatch(match)
		first, _ := strconv.Atoi(found[1])
		if last, err := strconv.Atoi(found[2]); err == nil {
			return fmt.Sprintf(`:%d-%d"`, ports[first], ports[last])
		}
		return fmt.Sprintf(`:%d"`, ports[first])
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

func exampleStatusSite(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	start(gate.WithoutRace()) // the hash of the password is made to take long
	if page := mustGetPage(t, addr(8080)); page != "inside" {
		t.Errorf("through the port: %q", page)
	}
	visit := func(method, path, user, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, "http://"+addr(8081)+path, strings.NewReader(body))
		must(t, err)
		r.Header.Set("Content-Type", "application/json")
		if user != "" {
			r.SetBasicAuth(user, "portgate")
		}
		answer, err := http.DefaultClient.Do(r)
		must(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		must(t, err)
		return answer.StatusCode, string(text)
	}
	for _, path := range []string{"/status/", "/status/status", "/status/lists/banned"} {
		if status, _ := visit(http.MethodGet, path, "", ""); status != http.StatusUnauthorized {
			t.Errorf("%s without a user: %d", path, status)
		}
	}
	if status, text := visit(http.MethodGet, "/status", "admin", ""); status != http.StatusOK || !strings.Contains(text, "<title>Portgate</title>") {
		t.Errorf("the page: %d %.100s", status, text)
	}
	const entry = "/status/lists/banned/entries/127.0.0.2"
	if status, text := visit(http.MethodPut, entry, "", `{"ttl":"1h"}`); status != http.StatusUnauthorized {
		t.Errorf("a ban without a user: %d %s", status, text)
	}
	if got := pageFrom(t, "127.0.0.2", addr(8080)); !strings.HasSuffix(got, "inside") {
		t.Errorf("who is not banned yet: %q", got)
	}
	if status, text := visit(http.MethodPut, entry, "admin", `{"ttl":"1h"}`); status != http.StatusOK {
		t.Errorf("a ban: %d %s", status, text)
	}
	if got := pageFrom(t, "127.0.0.2", addr(8080)); got != "" {
		t.Errorf("who is banned: %q", got)
	}
}
