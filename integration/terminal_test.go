package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// terminal is one of tmux, on a server of its own.
type terminal struct {
	t      *testing.T
	socket string
}

// startTerminal runs a program in a terminal of a size. When the program has ended, its exit code is on the screen. Variables are those of the program.
func startTerminal(t *testing.T, width, height int, variables []string, args ...string) *terminal {
	t.Helper()
	dir, err := os.MkdirTemp("", "tmux-") // the path of a socket must be short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	term := &terminal{t, filepath.Join(dir, "socket")}
	command := "env " + strings.Join(append(variables, "HOME="+dir), " ")
	for _, arg := range args {
		command += " '" + arg + "'"
	}
	term.do("new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), command+`; echo "exit code $?"; exec cat`)
	t.Cleanup(func() { term.do("kill-server") })
	return term
}

func (term *terminal) do(args ...string) string {
	term.t.Helper()
	return output(term.t, exec.Command(program(term.t, "tmux"), append([]string{"-u", "-S", term.socket, "-f", "/dev/null"}, args...)...))
}

// keys presses keys, by the names that tmux has for them.
func (term *terminal) keys(names ...string) {
	term.t.Helper()
	term.do(append([]string{"send-keys"}, names...)...)
}

func (term *terminal) text(text string) {
	term.t.Helper()
	term.do("send-keys", "-l", text)
}

func (term *terminal) resize(width, height int) {
	term.t.Helper()
	term.do("resize-window", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height))
}

func (term *terminal) screen() string {
	term.t.Helper()
	return term.do("capture-pane", "-p")
}

// colours reports whether there are some on the screen.
func (term *terminal) colours() bool {
	term.t.Helper()
	return regexp.MustCompile(`\x1b\[(\d+;)*[349]\d?[0-7](;\d+)*m`).MatchString(resets.ReplaceAllString(term.do("capture-pane", "-p", "-e"), ""))
}

// resets are what tmux writes for "no colour".
var resets = regexp.MustCompile(`\x1b\[[34]9m`)

// mustShow waits until the screen is as wanted, line by line. In a line that is wanted, * is a word and ... the rest of the line; blanks are as many as there are.
func (term *terminal) mustShow(want ...string) {
	term.t.Helper()
	gate.Eventually(term.t, peerTimeout, func() error {
		screen := term.screen()
		lines := strings.Split(strings.TrimRight(screen, "\n"), "\n")
		for i := range max(len(want), len(lines)) {
			var pattern, line string
			if i < len(want) {
				pattern = want[i]
			}
			if i < len(lines) {
				line = lines[i]
			}
			if !matches(pattern, line) {
				return fmt.Errorf("line %d is %q, want %q, of\n%s", i+1, line, pattern, screen)
			}
		}
		return nil
	})
}

// mustSee waits until some line is as wanted.
func (term *terminal) mustSee(want string) {
	term.t.Helper()
	gate.Eventually(term.t, peerTimeout, func() error {
		screen := term.screen()
		for line := range strings.Lines(screen) {
			if matches(want, line) {
				return nil
			}
		}
		return fmt.Errorf("no line is %q of\n%s", want, screen)
	})
}

func matches(pattern, line string) bool {
	words := strings.Fields(pattern)
	for i, word := range words {
		switch word {
		case "*":
			words[i] = `\S+`
		case "...":
			words[i] = `.*`
		default:
			words[i] = regexp.QuoteMeta(word)
		}
	}
	return regexp.MustCompile(`^\s*` + strings.Join(words, `\s+`) + `\s*$`).MatchString(line)
}
