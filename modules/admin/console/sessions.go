package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

// filterNames are the parameters of the API that choose sessions.
var filterNames = []string{"client", "listener", "upstream", "network", "older", "idle"}

func addFilters(cmd *cobra.Command) {
	for name, usage := range map[string]string{
		"client":   "Only sessions of this address or prefix; may be repeated, as the other filters that name something",
		"listener": "Only sessions of this listen address, as it is shown",
		"upstream": "Only sessions of this upstream, as configured or its address",
		"network":  "Only sessions of this network, such as tcp or udp",
	} {
		cmd.Flags().StringArrayP(name, "", nil, usage)
	}
	cmd.Flags().StringP("older", "", "", "Only sessions that began at least so long ago, such as 1h")
	cmd.Flags().StringP("idle", "", "", "Only sessions in which nothing has moved for so long, such as 10m")
}

// filter returns what the flags choose. A flag that is given without a value goes to the API, which refuses it: a script may have lost it.
func (c *call) filter() url.Values {
	query := make(url.Values)
	for _, name := range filterNames {
		switch {
		case !c.Changed(name):
		case name == "older" || name == "idle":
			query.Set(name, c.String(name))
		default:
			query[name] = c.values(name)
		}
	}
	return query
}

func sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions [<id>...]",
		Short: "Shows the living sessions, or closes some",
		Long: `
Shows the living sessions: all of them, those that the filters choose, or those
with these IDs. With --close it closes them, after it has shown them and asked.`,
		Example: `  caddy gate sessions --sort rate --limit 10
  caddy gate sessions --client 192.0.2.0/24 --idle 10m
  caddy gate sessions --close --client 192.0.2.7
  caddy gate sessions --close --yes c9b6233d00000001`,
	}
	addFilters(cmd)
	cmd.Flags().StringP("sort", "", "", "What to sort by, such as rate, bytes, duration, idle or client_ip; with - in front the other way around")
	cmd.Flags().StringP("limit", "", "", "How many to show at most")
	cmd.Flags().BoolP("close", "", false, "Close them")
	cmd.Flags().BoolP("all", "", false, "With --close: close all sessions")
	cmd.Flags().BoolP("yes", "", false, "With --close: do not ask")
	cmd.Flags().BoolP(jsonFlag, "", false, jsonUsage)
	return command(cmd, runSessions)
}

func runSessions(c *call) error {
	ids, filter, closing := c.FlagSet.Args(), c.filter(), c.Bool("close")
	for _, id := range ids {
		if id == "" || strings.Contains(id, "/") {
			return fmt.Errorf("session: %q: expected an ID such as c9b6233d00000001", id)
		}
	}
	switch {
	case len(ids) > 0 && len(filter) > 0:
		return errors.New("expected IDs or filters, not both")
	case !closing && (c.Bool("all") || c.Bool("yes")):
		return errors.New("--all, --yes: expected with --close alone")
	case closing && (c.Changed("sort") || c.Changed("limit")):
		return errors.New("--sort, --limit: expected without --close, which closes all that the filters choose")
	case closing && c.Bool("all") != (len(ids)+len(filter) == 0):
		return errors.New("--close: expected IDs, a filter, or --all, which closes all sessions")
	case closing:
		return c.closeSessions(ids, filter)
	case len(ids) > 0:
		return c.showSome(ids)
	}
	for _, name := range []string{"sort", "limit"} {
		if c.Changed(name) {
			filter.Set(name, c.String(name))
		}
	}
	return c.show(sessionsPath+question(filter), new(sessions))
}

// some gets sessions by their IDs, as the array that the API answers where it is asked for several.
func (c *call) some(ids []string) ([]byte, error) {
	all := make([]json.RawMessage, 0, len(ids))
	for _, id := range ids {
		one, err := c.client.Do(c.ctx, http.MethodGet, sessionsPath+"/"+url.PathEscape(id), nil)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return json.Marshal(all)
}

func (c *call) showSome(ids []string) error {
	answer, err := c.some(ids)
	if err != nil {
		return err
	}
	return c.print(bytes.NewReader(append(answer, '\n')), new(sessions))
}

// closeSessions closes sessions by their IDs, by a filter, or all.
func (c *call) closeSessions(ids []string, filter url.Values) error {
	if !c.Bool("yes") {
		if err := c.confirm(ids, filter); err != nil {
			return err
		}
	}
	paths := make([]string, 0, len(ids))
	for _, id := range ids {
		paths = append(paths, sessionsPath+"/"+url.PathEscape(id))
	}
	if len(ids) == 0 {
		if len(filter) == 0 {
			filter = url.Values{"all": {"true"}}
		}
		paths = append(paths, sessionsPath+question(filter))
	}
	var failed error
	total := closed{}
	for _, path := range paths {
		n, err := closeAt(c.ctx, c.client, path)
		total.Closed += n
		failed = errors.Join(failed, err) // one that has ended meanwhile does not keep the others open
	}
	if failed != nil && total.Closed == 0 {
		return failed
	}
	if c.Bool(jsonFlag) {
		return errors.Join(json.NewEncoder(c.out).Encode(total), failed)
	}
	_, err := fmt.Fprintf(c.out, "closed %s\n", plural(total.Closed, "session"))
	return errors.Join(err, failed)
}

// listedBefore is how many sessions are shown before the question whether to close them.
const listedBefore = 20

// confirm shows what is about to be closed, and asks. It returns an error unless the answer is yes.
func (c *call) confirm(ids []string, filter url.Values) error {
	if !term.IsTerminal(int(c.in.Fd())) {
		return errors.New("--close: expected --yes, because there is no terminal to ask at")
	}
	var answer []byte
	var err error
	if len(ids) > 0 {
		answer, err = c.some(ids)
	} else {
		answer, err = c.client.Do(c.ctx, http.MethodGet, sessionsPath+question(filter), nil)
	}
	var all sessions
	if err == nil {
		err = decodeAnswer(answer, &all)
	}
	if err != nil {
		return err
	}
	listed := all[:min(len(all), listedBefore)]
	if err := listed.table().write(os.Stderr); err != nil {
		return err
	}
	if more := len(all) - len(listed); more > 0 {
		fmt.Fprintf(os.Stderr, "and %s more\n", count(int64(more)))
	}
	fmt.Fprintf(os.Stderr, "Close %s? [y/N] ", plural(len(all), "session"))
	if !saysYes(c.in) {
		return errors.New("nothing was closed")
	}
	return nil
}

func saysYes(from io.Reader) bool {
	line, _ := bufio.NewReader(from).ReadString('\n')
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(line)))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return count(int64(n)) + " " + what + "s"
}

// parseFilter reads a filter as somebody types it: words such as upstream=10.0.0.1:5432, and addresses and prefixes, which are clients.
func parseFilter(text string) (url.Values, error) {
	query := make(url.Values)
	for word := range strings.FieldsSeq(text) {
		name, value, named := strings.Cut(word, "=")
		if !named {
			name, value = "client", word
			if _, err := netip.ParsePrefix(word); err != nil {
				if _, err := netip.ParseAddr(word); err != nil {
					return nil, fmt.Errorf("%q: expected an address, a prefix, or one of %s= with a value", word, strings.Join(filterNames, "=, "))
				}
			}
		}
		if !slices.Contains(filterNames, name) || value == "" {
			return nil, fmt.Errorf("%q: expected one of %s= with a value", word, strings.Join(filterNames, "=, "))
		}
		query.Add(name, value)
	}
	return query, nil
}

// filterText is the opposite of parseFilter.
func filterText(query url.Values) string {
	var words []string
	for _, name := range filterNames {
		for _, value := range query[name] {
			words = append(words, name+"="+value)
		}
	}
	return strings.Join(words, " ")
}

// closed is the answer to a DELETE.
type closed struct {
	Closed int `json:"closed"`
}

func closeAt(ctx context.Context, client *adminapi.Client, path string) (n int, err error) {
	answer, err := client.Do(ctx, http.MethodDelete, path, nil)
	if err != nil {
		return 0, err
	}
	var said struct{ Closed *int }
	if err := decodeAnswer(answer, &said); err != nil {
		return 0, err
	}
	if said.Closed == nil {
		return 0, notOurs(errors.New("it does not say how many sessions were closed"))
	}
	return *said.Closed, nil
}
