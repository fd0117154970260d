package console

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

func topCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Shows sessions, rates, refusals and upstreams, again and again",
		Long: `
Shows sessions, rates, refusals and upstreams, again and again. In a terminal it
is a table that keys sort, filter and move in, and that sessions are closed in;
? shows the keys. Elsewhere, and with --count, it prints plain lines.`,
		Example: "  caddy gate top\n  caddy gate top --client 192.0.2.0/24 --sort bytes\n  caddy gate top --count 1 --limit 5",
		Args:    cobra.NoArgs,
	}
	addFilters(cmd)
	cmd.Flags().StringP("sort", "", "rate", "What to sort sessions by, such as rate, bytes, duration, idle or client_ip; with - in front the other way around")
	cmd.Flags().StringP("interval", "", "1s", "How long to wait between two looks")
	cmd.Flags().IntP("count", "", 0, "Print plain lines so many times, and stop; 0 is for ever")
	cmd.Flags().IntP("limit", "", 20, "How many sessions to print in plain lines")
	cmd.Flags().BoolP(jsonFlag, "", false, "Print what the admin API answers, a line each time")
	return command(cmd, runTop)
}

const shortestInterval = 100 * time.Millisecond

func runTop(c *call) error {
	m := &model{address: c.client.Address(), filter: c.filter()}
	by, reversed := strings.CutPrefix(c.String("sort"), "-")
	if err := caddyfile.OneOf(by, orders[:]...); err != nil {
		return fmt.Errorf("--sort: %w", err)
	}
	m.order, m.reversed = slices.Index(orders[:], by), reversed
	parsed, err := caddyfile.ParseDuration(c.String("interval"))
	interval := time.Duration(parsed)
	if err != nil || interval < shortestInterval {
		return fmt.Errorf("--interval: %w", caddyfile.OneOf(c.String("interval"), "a duration of at least "+shortestInterval.String()+", such as 2s"))
	}
	if c.Int("count") < 0 {
		return fmt.Errorf("--count: %q: expected a number of 0 or more", strconv.Itoa(c.Int("count")))
	}
	if c.Int("limit") < 1 {
		return fmt.Errorf("--limit: %q: expected a number of 1 or more", strconv.Itoa(c.Int("limit")))
	}
	ctx, stop := signal.NotifyContext(c.ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	c.ctx = ctx
	if c.Int("count") == 0 && !c.Bool(jsonFlag) && isTerminal(c.out) {
		if screen, err := openScreen(); err == nil {
			return c.runScreen(m, screen, interval)
		}
	}
	return c.runPlain(m, interval)
}

// isTerminal reports whether something can show more than lines.
func isTerminal(out any) bool {
	file, isFile := out.(*os.File)
	kind := os.Getenv("TERM")
	return isFile && term.IsTerminal(int(file.Fd())) && kind != "" && kind != "dumb"
}

// plainWidth is how wide plain lines are where nothing says otherwise: enough for the columns that matter, and for a diff beside another one.
const plainWidth = 120

// widthOf returns how wide lines may be: what COLUMNS says, or the terminal.
func widthOf(out any) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if file, isFile := out.(*os.File); isFile {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return plainWidth
}

// runPlain prints what top shows, until it is told to stop. An error ends it if nothing has been printed yet, or a number of times was wanted.
func (c *call) runPlain(m *model, interval time.Duration) error {
	m.limit = c.Int("limit")
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for n := 1; ; n++ {
		s, err := fetch(c.ctx, c.client, m.filter, m.sort(), m.limit)
		switch {
		case c.ctx.Err() != nil:
			return nil
		case err != nil && (m.now == nil || c.Int("count") > 0):
			return err
		case err != nil:
			_, err = fmt.Fprintf(os.Stderr, "no answer: %v\n", err)
		default:
			m.came(s, nil)
			err = c.printOnce(m, n > 1)
		}
		if err != nil || n == c.Int("count") {
			return err
		}
		select {
		case <-c.ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (c *call) printOnce(m *model, again bool) error {
	if c.Bool(jsonFlag) {
		raw, err := json.Marshal(m.now.raw)
		if err != nil {
			return err
		}
		return adminapi.PrintableJSON(c.out, strings.NewReader(string(raw)+"\n"))
	}
	text := m.plainText(widthOf(c.out))
	if again {
		text = "\n" + text
	}
	_, err := fmt.Fprint(c.out, text)
	return err
}

// answer is what has come of a request that runs beside the screen.
type answer struct {
	sort   string
	filter string
	now    *snapshot
	err    error
}

// asker asks the API, one question at a time, while keys go on being answered.
type asker struct {
	call    *call
	model   *model
	answers chan answer
	closed  chan func()
	asking  bool
	again   bool // what is asked for is no longer what is wanted
}

// ask begins a question, or has the next one follow the one that is under way.
func (a *asker) ask() {
	if a.asking {
		a.again = true
		return
	}
	a.asking, a.again = true, false
	one, filter := answer{sort: a.model.sort(), filter: filterText(a.model.filter)}, a.model.filter
	go func(ctx context.Context) {
		one.now, one.err = fetch(ctx, a.call.client, filter, one.sort, sessionsShown)
		a.answers <- one
	}(a.call.ctx)
}

// take takes an answer, unless something else is wanted by now.
func (a *asker) take(one answer) {
	a.asking = false
	if one.sort == a.model.sort() && one.filter == filterText(a.model.filter) {
		a.model.came(one.now, one.err)
	}
	if a.again {
		a.ask()
	}
}

// close closes what was confirmed.
func (a *asker) close(what *order) {
	a.model.said = "closing"
	go func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		n, err := closeAt(ctx, a.call.client, what.path)
		a.closed <- func() { a.model.closed(n, err) }
	}(a.call.ctx)
}
