package acl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "acl",
		Short: "Shows and edits the lists of addresses of a running Caddy",
		Long: `
Shows and edits the dynamic lists ("deny list <name>") of a running Caddy, through
its admin API. What is added or removed is in force at once, and is still there
after a restart.

The admin API is that of --address, or else that of the config file, or else
Caddy's default, localhost:2019.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(listCommand(), addCommand(), removeCommand())
			for _, sub := range cmd.Commands() {
				sub.Flags().StringP("address", "", "", "Address of the admin API")
				sub.Flags().StringP("config", "c", "", "Config file that has the address of the admin API")
				sub.Flags().StringP("adapter", "a", "", "Config adapter to apply")
			}
		},
	})
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list [<name>]",
		Short:   "Shows the lists, or the entries of one",
		Example: "  caddy acl list\n  caddy acl list bans",
		Args:    cobra.MaximumNArgs(1),
		RunE: caddycmd.WrapCommandFuncForCobra(func(flags caddycmd.Flags) (int, error) {
			if flags.NArg() == 0 {
				return show(flags, listsPath, printLists)
			}
			if err := checkListName(flags.Arg(0)); err != nil {
				return exitCode(err), err
			}
			return show(flags, pathOf(flags.Arg(0)), printEntries)
		}),
	}
}

func addCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "add <name> <prefix>",
		Short:   "Adds an address or a prefix to a list",
		Example: "  caddy acl add bans 192.0.2.7 --ttl 1h --reason 'port scan'\n  caddy acl add bans 2001:db8::/32",
		Args:    cobra.ExactArgs(2),
		RunE:    caddycmd.WrapCommandFuncForCobra(runAdd),
	}
	cmd.Flags().StringP("ttl", "", "", "Remove it again after this time, such as 1h or 7d")
	cmd.Flags().StringP("reason", "", "", "Why it is there")
	cmd.Flags().StringP("by", "", "", "Who added it (default: you)")
	return cmd
}

func removeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove <name> <prefix>",
		Short:   "Removes an address or a prefix from a list",
		Example: "  caddy acl remove bans 192.0.2.7",
		Args:    cobra.ExactArgs(2),
		RunE: caddycmd.WrapCommandFuncForCobra(func(flags caddycmd.Flags) (int, error) {
			path, err := entryPath(flags)
			if err == nil {
				_, err = request(flags, http.MethodDelete, path, nil)
			}
			return exitCode(err), err
		}),
	}
}

func runAdd(flags caddycmd.Flags) (int, error) {
	path, err := entryPath(flags)
	if err != nil {
		return exitCode(err), err
	}
	given := options{TTL: flags.String("ttl"), Reason: flags.String("reason"), By: flags.String("by")}
	if given.By == "" {
		if me, err := user.Current(); err == nil {
			given.By = me.Username
		}
	}
	body, err := json.Marshal(given)
	if err == nil {
		_, err = request(flags, http.MethodPut, path, body)
	}
	return exitCode(err), err
}

func pathOf(list string) string { return listsPath + "/" + list }

// entryPath finds what is wrong with the arguments before the server says it.
func entryPath(flags caddycmd.Flags) (string, error) {
	if err := checkListName(flags.Arg(0)); err != nil {
		return "", err
	}
	prefix, err := ipset.ParsePrefix(flags.Arg(1))
	if err != nil {
		return "", err
	}
	return pathOf(flags.Arg(0)) + "/entries/" + prefix.String(), nil
}

func show(flags caddycmd.Flags, path string, show func(io.Writer, []byte) error) (int, error) {
	body, err := request(flags, http.MethodGet, path, nil)
	if err == nil {
		err = show(os.Stdout, body)
	}
	return exitCode(err), err
}

// request talks to the admin API, which says in its own words what it refuses.
func request(flags caddycmd.Flags, method, path string, body []byte) ([]byte, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(flags.String("address"), nil, flags.String("config"), flags.String("adapter"))
	if err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	resp, err := caddycmd.AdminAPIRequest(address, method, path, header, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func exitCode(err error) int {
	if err != nil {
		return caddy.ExitCodeFailedStartup
	}
	return caddy.ExitCodeSuccess
}

func printLists(to io.Writer, body []byte) error {
	var lists []summary
	if err := json.Unmarshal(body, &lists); err != nil {
		return err
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LIST\tENTRIES")
	for _, list := range lists {
		fmt.Fprintf(table, "%s\t%d\n", list.Name, list.Size)
	}
	return table.Flush()
}

func printEntries(to io.Writer, body []byte) error {
	var list summary
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PREFIX\tADDED\tEXPIRES\tBY\tREASON")
	for _, e := range list.Entries {
		expires := "never"
		if e.Expires != nil {
			expires = e.Expires.Local().Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.Prefix, e.Added.Local().Format(time.RFC3339), expires, printable(e.By), printable(e.Reason))
	}
	return table.Flush()
}

// printable keeps what somebody has written from breaking out of its column.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
