package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// startForward runs `caddy forward` and waits until it says what it does.
func startForward(t *testing.T, args ...string) *gate.Process {
	t.Helper()
	p := gate.Launch(t, nil, append([]string{"forward"}, args...)...)
	gate.Eventually(t, 30*time.Second, func() error {
		if output := p.Output(); !strings.Contains(output, "listening on") || !strings.Contains(output, "timeouts") {
			return fmt.Errorf("the output says not yet what is done: %s", output)
		}
		return nil
	})
	return p
}

func TestForwardCommandForwardsAndSaysWhat(t *testing.T) {
	t.Parallel()
	addr, a, b := gate.ReserveAddr(t), serve(t, greet("a")), serve(t, greet("b"))
	p := startForward(t, "--from", addr, "--to", a, "--to", b, "--idle-timeout", "7m")
	for _, word := range []string{addr, a, b, "connect 3s", "idle 7m", "lifetime never", "grace period 10s"} {
		if !strings.Contains(p.Output(), word) {
			t.Errorf("the output does not say %q:\n%s", word, p.Output())
		}
	}
	for i := range 4 {
		mustGreet(t, addr, []string{"a", "b"}[i%2])
	}
	if sessions := p.Sessions(); len(sessions) > 0 {
		t.Errorf("access log without --access-log: %s", sessions[0].Line)
	}
	p.Stop()
}

func TestForwardCommandIdleTimeoutAndAccessLog(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	upstreamAddr, accepted := accepting(t)
	addr := gate.ReserveAddr(t)
	p := startForward(t, "--from", addr, "--to", upstreamAddr, "--idle-timeout", limit.String(), "--access-log")
	start := time.Now()
	client, upstream := pair(t, addr, accepted)
	mustEndAfter(t, start, limit, client, upstream)
	mustHaveEnded(t, p, client, "idle_timeout")
}

// The command serves, and ends when it is told to, where nobody reads its log.
func TestForwardCommandWithALogThatNobodyReads(t *testing.T) {
	t.Parallel()
	var ends [2]int
	must(t, unix.Pipe2(ends[:], unix.O_CLOEXEC))
	t.Cleanup(func() { unix.Close(ends[0]) })
	_, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, 4096)
	must(t, err)
	log := os.NewFile(uintptr(ends[1]), "pipe")
	defer log.Close()

	addr := gate.ReserveAddr(t)
	cmd := exec.Command(gate.Binary(t, gate.Plain), "forward", "--from", addr, "--to", serve(t, echo), "--access-log")
	cmd.Stderr = log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	gate.Eventually(t, peerTimeout, func() error { return oneRequest(addr) })
	for range 100 { // of which ten fill the pipe
		must(t, oneRequest(addr))
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(peerTimeout):
		t.Error("SIGTERM does not end the process")
	}
}

func TestForwardCommandForwardsPortRanges(t *testing.T) {
	t.Parallel()
	first, firstUpstream := gate.ReserveRange(t, 2), gate.ReserveRange(t, 2)
	serveAt(t, gate.Loopback(firstUpstream), greet("first"))
	serveAt(t, gate.Loopback(firstUpstream+1), greet("second"))
	startForward(t, "--from", fmt.Sprintf("127.0.0.1:%d-%d", first, first+1), "--to", fmt.Sprintf("127.0.0.1:%d-%d", firstUpstream, firstUpstream+1))
	mustGreet(t, gate.Loopback(first), "first")
	mustGreet(t, gate.Loopback(first+1), "second")
}

func TestForwardCommandHelpHasExamples(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := gate.Run(t, gate.Plain, "forward", "--help")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, text := range []string{"Examples:", "caddy forward --from :8080 --to 192.168.1.100:9000", "--idle-timeout", "--access-log"} {
		if !strings.Contains(stdout, text) {
			t.Errorf("no %q in\n%s", text, stdout)
		}
	}
}

func TestForwardCommandRefusesWrongFlags(t *testing.T) {
	t.Parallel()
	taken := gate.TakePort(t)
	cases := map[string]struct {
		args []string
		want string
	}{
		"no flags":          {nil, "--from: expected an address to listen on, such as :8080"},
		"no upstream":       {[]string{"--from", ":1"}, "--to: expected at least one upstream, such as 127.0.0.1:9000"},
		"no port to listen": {[]string{"--from", "localhost", "--to", "127.0.0.1:9"}, `--from: "localhost": expected an address to listen on, such as :8080`},
		"wrong listen port": {[]string{"--from", ":x", "--to", "127.0.0.1:9"}, `--from: ":x": expected an address to listen on, such as :8080`},
		"URL to listen":     {[]string{"--from", "http://localhost:8080", "--to", "127.0.0.1:9"}, `--from: "http://localhost:8080": expected an address to listen on, such as :8080`},
		"no path to listen": {[]string{"--from", "unix/", "--to", "127.0.0.1:9"}, `--from: "unix/": expected an address to listen on, such as :8080`},
		"URL upstream":      {[]string{"--from", ":1", "--to", "http://a:9"}, `--to: "http://a:9": unknown network "http:"`},
		"wrong upstream":    {[]string{"--from", ":1", "--to", "nowhere"}, `--to: "nowhere": expected host:port, host:first-last or unix//path`},
		"wrong port":        {[]string{"--from", ":1", "--to", "a:0"}, `--to: "a:0": port "0": expected a number from 1 to 65535`},
		"wrong duration":    {[]string{"--from", ":1", "--to", "a:9", "--idle-timeout", "5x"}, `--idle-timeout: "5x": expected a duration such as 30s`},
		"negative duration": {[]string{"--from", ":1", "--to", "a:9", "--idle-timeout", "-1s"}, `--idle-timeout: "-1s": expected a duration of 0 or more`},
		"range on one side": {[]string{"--from", "127.0.0.1:1-3", "--to", "a:9"}, `--to: "a:9": expected a range of 3 ports`},
		"unknown flag":      {[]string{"--form", ":1"}, "unknown flag: --form"},
		"port in use":       {[]string{"--from", taken, "--to", "a:9"}, "address already in use"},
		"unexpected value":  {[]string{"8080", "--from", ":1", "--to", "a:9"}, `"8080"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := gate.Run(t, gate.Plain, append([]string{"forward"}, c.args...)...)
			if said := messages(stderr); code == 0 || !strings.Contains(said, c.want) {
				t.Errorf("exit code %d, want %q in\n%s", code, c.want, said)
			}
		})
	}
}

// messages returns what a command says on stderr: the messages of Caddy's log, without its JSON, and other lines as they are.
func messages(stderr string) string {
	var said strings.Builder
	for line := range strings.Lines(stderr) {
		var entry struct{ Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil {
			line = entry.Msg + "\n"
		}
		said.WriteString(line)
	}
	return said.String()
}

// A config file that is wrong is refused with the name of the file and the line, and the process does not start.
func TestWrongCaddyfileIsRefusedWithFileAndLine(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "wrong.Caddyfile", `{
	layer4 {
		gate+tcp/127.0.0.1:1 {
			route {
				forward 127.0.0.1:9000 {
					idle_timeout 5x
				}
			}
		}
	}
}
`)
	for _, command := range []string{"run", "validate", "adapt"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := gate.Run(t, gate.Plain, command, "--config", path)
			for _, want := range []string{"wrong.Caddyfile:6", `idle_timeout: "5x": expected a duration such as 30s`} {
				if said := messages(stderr); code == 0 || !strings.Contains(said, want) {
					t.Errorf("exit code %d, want %q in\n%s", code, want, said)
				}
			}
		})
	}
}
