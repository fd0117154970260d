package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// gateway is a process with some sessions, for caddy gate.
type gateway struct {
	*gate.Process
	t       *testing.T
	config  gate.JSON
	addr    string
	a, b    string // upstreams; b is drained
	clients []net.Conn
	command string
}

// startGateway starts a gateway with 3 sessions, from 127.0.3.1 to 127.0.3.3, and a client that was refused.
func startGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{t: t, addr: gate.ReserveAddr(t), a: serve(t, echo), b: serve(t, echo), command: gate.Binary(t, gate.Plain)}
	g.config = gate.Layer4(gate.Listen(g.addr, acl("deny list bans"), gate.Forward(g.a, g.b)))
	g.Process = gate.Start(t, g.config)
	ban(t, g.Process, "bans", "127.0.4.1", `{"ttl": "1h", "reason": "\u001b]0;scan\u0007", "by": "me"}`)
	if stdout, stderr, code := g.run("upstreams", "drain", g.b); code != 0 {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	for i := range 3 {
		g.clients = append(g.clients, g.dial(fmt.Sprintf("127.0.3.%d", i+1)))
	}
	denied := mustDialFrom(t, "127.0.4.1", g.addr)
	g.WaitSession(port(denied))
	return g
}

func (g *gateway) dial(from string) net.Conn {
	g.t.Helper()
	conn := mustDialFrom(g.t, from, g.addr)
	conn.SetDeadline(time.Now().Add(peerTimeout))
	mustExchange(g.t, conn)
	return conn
}

func (g *gateway) args(args ...string) []string {
	return append([]string{"gate"}, append(args, "--address", g.Admin())...)
}

// run runs caddy gate, whose stdin is no terminal.
func (g *gateway) run(args ...string) (stdout, stderr string, code int) {
	g.t.Helper()
	return gate.Run(g.t, gate.Plain, g.args(args...)...)
}

// mustRun is run for what can't fail. It returns the lines of stdout.
func (g *gateway) mustRun(args ...string) []string {
	g.t.Helper()
	stdout, stderr, code := g.run(args...)
	if code != 0 || stderr != "" {
		g.t.Fatalf("caddy gate %q: exit code %d\n%s%s", args, code, stdout, stderr)
	}
	return strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
}

// mustPrint requires lines as [terminal.mustShow] does.
func (g *gateway) mustPrint(want []string, args ...string) {
	g.t.Helper()
	lines := g.mustRun(args...)
	if !slices.EqualFunc(want, lines, matches) {
		g.t.Errorf("caddy gate %q prints\n%s\nwant\n%s", args, strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// Each table has what the gateway does, and --json what the API answers.
func TestGateCommandShows(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	row := func(i int) string {
		return fmt.Sprintf("* tcp %s %s %s forwarding * * * * * *", g.clients[i].LocalAddr(), g.addr, g.a)
	}
	const header = "SESSION NET CLIENT LISTENER UPSTREAM STATE UP/S DOWN/S UP DOWN IDLE AGE RULE"
	g.mustPrint([]string{header, row(0), row(1), row(2)}, "sessions")
	g.mustPrint([]string{header, row(2), row(1)}, "sessions", "--sort", "-client_ip", "--limit", "2")
	g.mustPrint([]string{header, row(0), row(2)}, "sessions", "--client", "127.0.3.1", "--client", "127.0.3.3", "--upstream", g.a, "--listener", g.addr, "--network", "tcp", "--older", "1ns", "--idle", "1ns")
	g.mustPrint([]string{header}, "sessions", "--client", "127.0.5.0/24")
	id := strings.Fields(g.mustRun("sessions", "--client", "127.0.3.2")[1])[0]
	g.mustPrint([]string{header, row(1)}, "sessions", id)
	place := "gate+tcp/" + g.addr + " *"
	upstreams := []string{"UPSTREAM STATE SESSIONS QUEUED FAILS WEIGHT TIER ZONE HANDLER LAST ERROR", g.a + " up 3 0 0 1 0 " + place, g.b + " drain 0 0 0 1 0 " + place}
	if g.a > g.b {
		slices.Reverse(upstreams[1:])
	}
	g.mustPrint(upstreams, "upstreams")
	g.mustPrint([]string{upstreams[0], g.b + " drain 0 0 0 1 0 " + place}, "upstreams", "--state", "drain", "--state", "maint", "--handler", g.addr, "--name", g.b)
	g.mustPrint([]string{"LIST ENTRIES LOADED NOT RIGHT", "bans 1 -"}, "lists")
	g.mustPrint([]string{"PREFIX ADDED LEFT BY REASON", `127.0.4.1/32 * * me \x1b]0;scan\a`}, "lists", "bans")
	g.mustPrint([]string{"USED KEY LIMIT HANDLER"}, "limits")
	g.mustPrint([]string{"LISTENER NET HANDLER SESSIONS TOTAL UP/S DOWN/S UPSTREAMS", g.addr + " tcp forward 3 4 * * " + g.a + " " + g.b}, "mappings")
	status := strings.Join(g.mustRun("status"), "\n")
	for _, want := range []string{"\nsessions             3 TCP, 0 UDP, of which 0 began", "\n  denied             1 in all", "\nreloads              0 done, 0 rejected"} {
		if !strings.Contains(status, want) {
			t.Errorf("status has no %q:\n%s", want, status)
		}
	}
	for _, command := range []string{"sessions", "upstreams", "mappings", "lists", "limits", "status"} {
		var printed, answered any
		must(t, errors.Join(json.Unmarshal([]byte(strings.Join(g.mustRun(command, "--json"), "\n")), &printed), json.Unmarshal([]byte(g.MustGet("/portgate/"+command)), &answered)))
		if fmt.Sprintf("%T", printed) != fmt.Sprintf("%T", answered) {
			t.Errorf("%s --json: %T, the API answers %T", command, printed, answered)
		}
		if command == "upstreams" && fmt.Sprint(printed) != fmt.Sprint(answered) {
			t.Errorf("%s --json: %v, the API answers %v", command, printed, answered)
		}
	}
}

// Sessions are closed by ID, by filter and all, and never by a slip. Upstreams are set.
func TestGateCommandSteers(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	id := strings.Fields(g.mustRun("sessions", "--client", "127.0.3.2")[1])[0]
	for want, args := range map[string][]string{
		"expected --yes, because there is no terminal":   {"sessions", "--close", "--client", "127.0.3.1"},
		"expected IDs, a filter, or --all":               {"sessions", "--close", "--yes"},
		"expected one of top, sessions":                  {"session"},
		"expected IDs or filters, not both":              {"sessions", "--close", "--yes", "--client", "127.0.3.1", id},
		"--sort, --limit: expected without --close":      {"sessions", "--close", "--yes", "--client", "127.0.3.1", "--limit", "1"},
		"--all, --yes: expected with --close alone":      {"sessions", "--all"},
		"expected an address or a prefix":                {"sessions", "--close", "--yes", "--listener", g.addr, "--client", ""},
		"a duration of more than 0":                      {"sessions", "--idle", "x"},
		"older: \\\"\\\"":                                {"sessions", "--close", "--yes", "--listener", g.addr, "--older", ""},
		"expected an ID such as":                         {"sessions", "--close", "--yes", "c9b6"},
		"expected a session that has not ended":          {"sessions", "--close", "--yes", "0000000000000001"},
		"expected one that the running config has":       {"upstreams", "drain", "192.0.2.1:1"},
		"expected a whole number, or config":             {"upstreams", "weight", g.a, "x"},
		"expected the name of an upstream":               {"upstreams", "ready", ""},
		"expected the name of a list":                    {"lists", ""},
		"expected a list that the running config names":  {"lists", "bands"},
		"expected rate, rate_up, rate_down":              {"top", "--sort", "x"},
		"expected a duration of at least 100ms":          {"top", "--interval", "1ms"},
		"--limit: \\\"0\\\": expected a number of 1":     {"top", "--limit", "0"},
		"HTTP 400: client:":                              {"top", "--count", "1", "--client", "x"},
		`admin API at \"localhost:1\": dial`:             {"status", "--address", "localhost:1"},
		`--address: \"localhost\": expected the address`: {"status", "--address", "localhost"},
	} {
		if slices.Contains(args, "--address") {
			args = append([]string{"gate"}, args...)
		} else {
			args = g.args(args...)
		}
		if stdout, stderr, code := gate.Run(t, gate.Plain, args...); code != 1 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("caddy %q: exit code %d, %q, stderr without %q:\n%s", args, code, stdout, want, stderr)
		}
	}
	for _, client := range g.clients {
		mustExchange(t, client)
	}
	g.mustPrint([]string{"closed 1 session"}, "sessions", "--close", "--yes", id)
	mustBeClosed(t, g.Process, g.clients[1])
	g.mustPrint([]string{`{"closed":1}`}, "sessions", "--close", "--yes", "--client", "127.0.3.1", "--json")
	mustBeClosed(t, g.Process, g.clients[0])
	g.mustPrint([]string{"closed 0 sessions"}, "sessions", "--close", "--yes", "--client", "127.0.3.1")
	mustExchange(t, g.clients[2])
	g.mustPrint([]string{"closed 1 session"}, "sessions", "--close", "--yes", "--all")
	mustBeClosed(t, g.Process, g.clients[2])

	header, place := "UPSTREAM STATE SESSIONS QUEUED FAILS WEIGHT TIER ZONE HANDLER LAST ERROR", "0 gate+tcp/"+g.addr+" *"
	g.mustPrint([]string{header, g.b + " up 0 0 0 1 " + place}, "upstreams", "ready", g.b)
	g.mustPrint([]string{header, g.a + " maint 0 0 0 1 " + place}, "upstreams", "maint", g.a)
	g.mustPrint([]string{header, g.b + " up 0 0 0 7 (config: 1) " + place}, "upstreams", "weight", g.b, "7")
	g.dial("127.0.3.1")
	g.mustPrint([]string{header, g.b + " up 1 0 0 1 " + place}, "upstreams", "weight", g.b, "config")
}

// The question is asked at a terminal, and only y closes.
func TestGateCommandAsks(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	for _, c := range []struct {
		answer, says string
		code         int
	}{{"n", "...nothing was closed...", 1}, {"", "...nothing was closed...", 1}, {"y", "closed 1 session", 0}} {
		term := startTerminal(t, 200, 24, nil, append([]string{g.command}, g.args("sessions", "--close", "--client", "127.0.3.2")...)...)
		term.mustSee("* tcp " + g.clients[1].LocalAddr().String() + " ...")
		term.mustSee("Close 1 session? [y/N]")
		mustExchange(t, g.clients[1])
		term.keys(c.answer, "Enter")
		term.mustSee(fmt.Sprintf("exit code %d", c.code))
		term.mustSee(strings.ReplaceAll(c.says, "...", " ... "))
	}
	mustBeClosed(t, g.Process, g.clients[1])
	mustExchange(t, g.clients[0])
}

// screenOf is what top shows of a gateway, without what is between the sessions and the last line.
func (g *gateway) screenOf(width int, title string, rows ...string) []string {
	lines := []string{
		"Portgate at ...", "sessions * TCP, 0 UDP new * up * down *", "refused * in all: denied 1", "files * of *", "UPSTREAMS 1 of 2 up",
		"UPSTREAM STATE SESSIONS QUEUED FAILS WEIGHT LAST ERROR", g.b + " drain 0 0 0 1", g.a + " up * 0 0 1",
		title, "CLIENT UPSTREAM UP/S DOWN/S IDLE AGE",
	}
	if width == 200 {
		lines[5] = "UPSTREAM STATE SESSIONS QUEUED FAILS WEIGHT HANDLER LAST ERROR"
		for i := 6; i < 8; i++ {
			lines[i] += " gate+tcp/" + g.addr + " *"
		}
		lines[9] = "CLIENT LISTENER UPSTREAM NET STATE UP/S DOWN/S UP DOWN IDLE AGE SESSION RULE"
	}
	return append(lines, rows...)
}

// row is what top shows of a client.
func (g *gateway) row(width, client int) string {
	if width == 200 {
		return fmt.Sprintf("%s %s %s tcp forwarding * * * * * * *", g.clients[client].LocalAddr(), g.addr, g.a)
	}
	return fmt.Sprintf("%s %s * * * *", g.clients[client].LocalAddr(), g.a)
}

const keysLine = "q quit s sort r reverse / filter k kill u upstreams p pause ? help"

// bottom adds the last line of a screen.
func bottom(lines []string, height int, last string) []string {
	for len(lines) < height-1 {
		lines = append(lines, "")
	}
	return append(lines, last)
}

// TestGateTop goes through top in a terminal: both sizes, every kind of key, a session that is closed after a question, a reload, and a gateway that stops.
func TestGateTop(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	term := startTerminal(t, 80, 24, nil, append([]string{g.command}, g.args("top", "--sort", "session_id", "--interval", "200ms")...)...)
	term.mustShow(bottom(g.screenOf(80, "SESSIONS by session_id, 3", "> "+g.row(80, 0), g.row(80, 1), g.row(80, 2)), 24, keysLine)...)
	if !term.colours() {
		t.Errorf("no colours:\n%q", term.do("capture-pane", "-p", "-e"))
	}
	term.resize(200, 60)
	term.mustShow(bottom(g.screenOf(200, "SESSIONS by session_id, 3", "> "+g.row(200, 0), g.row(200, 1), g.row(200, 2)), 60, keysLine)...)
	term.keys("r", "Down")
	term.mustShow(bottom(g.screenOf(200, "SESSIONS by -session_id, 3", g.row(200, 2), "> "+g.row(200, 1), g.row(200, 0)), 60, keysLine)...)
	term.resize(80, 24)
	term.keys("k")
	term.mustSee("Close session * of " + g.clients[1].LocalAddr().String() + "? y/n")
	term.keys("n")
	term.mustSee("nothing was closed")
	mustExchange(t, g.clients[1])
	term.keys("k", "y")
	mustBeClosed(t, g.Process, g.clients[1])
	term.mustShow(bottom(g.screenOf(80, "SESSIONS by -session_id, 2", g.row(80, 2), "> "+g.row(80, 0)), 24, "closed 1 session")...)
	term.keys("/")
	term.text("127.0.3.3 idle=x")
	term.keys("Enter")
	term.mustSee("refused: idle: ...")
	term.keys("/", "C-u")
	term.text("127.0.3.3")
	term.keys("Enter")
	term.mustShow(bottom(g.screenOf(80, "SESSIONS by -session_id, with client=127.0.3.3, 1", "> "+g.row(80, 2)), 24, keysLine)...)
	term.keys("K")
	term.mustSee("Close all sessions with client=127.0.3.3? y/n")
	term.keys("y")
	mustBeClosed(t, g.Process, g.clients[2])
	mustExchange(t, g.clients[0])
	term.keys("u")
	term.mustShow(bottom(g.screenOf(80, "", "")[:8], 24, keysLine)...)
	term.keys("?")
	term.mustSee("K close all sessions that pass the filter, after a question")
	term.keys("Escape", "u")

	g.Load(gate.Layer4(gate.Listen(g.addr, acl("deny list bans"), gate.Forward(g.a)), gate.Listen(gate.ReserveAddr(t), gate.Forward(g.a))))
	term.resize(200, 60)
	term.mustSee("Portgate at * * up * reloads 1, rejected 0")
	g.Stop()
	term.mustSee("no answer: admin API at ...")
	term.keys("q")
	term.mustShow("exit code 0")
}

// Without colours for those who ask for none, and in a terminal that can do nothing.
func TestGateTopWithoutColours(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	term := startTerminal(t, 80, 24, []string{"NO_COLOR=1"}, append([]string{g.command}, g.args("top", "--sort", "session_id")...)...)
	term.mustShow(bottom(g.screenOf(80, "SESSIONS by session_id, 3", "> "+g.row(80, 0), g.row(80, 1), g.row(80, 2)), 24, keysLine)...)
	if term.colours() {
		t.Errorf("colours:\n%q", term.do("capture-pane", "-p", "-e"))
	}
	term.keys("C-c")
	term.mustShow("exit code 0")
	dumb := startTerminal(t, 80, 24, []string{"TERM=dumb"}, append([]string{g.command}, g.args("top", "--sort", "session_id", "--count", "1")...)...)
	dumb.mustShow(append(g.screenOf(80, "SESSIONS by session_id, 3", g.row(80, 0), g.row(80, 1), g.row(80, 2)), "exit code 0")...)
}

// Where there is no terminal, top prints plain lines until it is stopped, a table each time.
func TestGateTopToAFile(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	path := filepath.Join(t.TempDir(), "top.log")
	file, err := os.Create(path)
	must(t, err)
	defer file.Close()
	cmd := exec.Command(g.command, g.args("top", "--interval", "100ms", "--limit", "2", "--sort", "session_id")...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "TERM=xterm-256color"}
	cmd.Stdout = file
	must(t, cmd.Start())
	var text string
	gate.Eventually(t, peerTimeout, func() error {
		written, err := os.ReadFile(path)
		if text = string(written); err == nil && strings.Count(text, "SESSIONS ") < 3 {
			err = fmt.Errorf("%q", text)
		}
		return err
	})
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	first, _, _ := strings.Cut(text, "\n\n")
	want := []string{
		"Portgate at ...", "sessions 3 TCP, 0 UDP new * up * down *", "refused * in all: denied 1", "files * of *", "UPSTREAMS 1 of 2 up",
		"UPSTREAM STATE SESSIONS QUEUED FAILS WEIGHT HANDLER LAST ERROR", g.b + " drain 0 0 0 1 ...", g.a + " up 3 0 0 1 ...",
		"SESSIONS by session_id, the first 2", "CLIENT LISTENER UPSTREAM STATE UP/S DOWN/S UP DOWN IDLE AGE",
		fmt.Sprintf("%s %s %s forwarding * * * * * *", g.clients[0].LocalAddr(), g.addr, g.a), fmt.Sprintf("%s %s %s forwarding * * * * * *", g.clients[1].LocalAddr(), g.addr, g.a),
	}
	if !slices.EqualFunc(want, strings.Split(first, "\n"), matches) {
		t.Errorf("it prints\n%s\nwant\n%s", first, strings.Join(want, "\n"))
	}
	for line := range strings.Lines(text) {
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\n' }) || len(line) > 121 {
			t.Errorf("%d bytes: %q", len(line), line)
		}
	}
	lines := g.mustRun("top", "--json", "--count", "2", "--interval", "100ms")
	if len(lines) != 2 {
		t.Errorf("%d lines, want 2: %q", len(lines), lines)
	}
	for _, line := range lines {
		var said struct {
			Time   time.Time
			Status struct {
				Sessions struct{ TCP int }
			}
			Upstreams []struct{ Name string }
			Sessions  []livingSession
		}
		if err := json.Unmarshal([]byte(line), &said); err != nil || said.Status.Sessions.TCP != 3 || len(said.Upstreams) != 2 || len(said.Sessions) != 3 || said.Time.IsZero() {
			t.Errorf("%v: %s", err, line)
		}
	}
}

// TestGateTopOverSSH holds that top works at the other end of ssh: it is drawn, follows the size of the terminal, answers keys, and ends when the connection is cut.
func TestGateTopOverSSH(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	addr, options := startSSHD(t)
	host, sshPort, err := net.SplitHostPort(addr)
	must(t, err)
	current, err := user.Current()
	must(t, err)
	pidFile := filepath.Join(t.TempDir(), "pid")
	remote := fmt.Sprintf("echo $$ > %s; exec %s %s", pidFile, g.command, strings.Join(g.args("top", "--sort", "session_id", "--interval", "200ms"), " "))
	args := append(append([]string{program(t, "ssh"), "-t"}, options(sshPort)...), current.Username+"@"+host, remote)
	term := startTerminal(t, 80, 24, nil, args...)
	term.mustShow(bottom(g.screenOf(80, "SESSIONS by session_id, 3", "> "+g.row(80, 0), g.row(80, 1), g.row(80, 2)), 24, keysLine)...)
	term.resize(200, 60)
	term.keys("Down")
	term.mustShow(bottom(g.screenOf(200, "SESSIONS by session_id, 3", g.row(200, 0), "> "+g.row(200, 1), g.row(200, 2)), 60, keysLine)...)
	pid, err := os.ReadFile(pidFile)
	must(t, err)
	proc := "/proc/" + strings.TrimSpace(string(pid))
	if name, err := os.ReadFile(proc + "/cmdline"); err != nil || !strings.Contains(string(name), "top") {
		t.Fatalf("%s: %q (%v)", proc, name, err)
	}
	term.do("respawn-pane", "-k", "exec cat") // ssh and its terminal are gone
	gate.Eventually(t, peerTimeout, func() error {
		if _, err := os.Stat(proc); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("top is still there: %w", errors.Join(err, errors.New(proc)))
		}
		return nil
	})
}
