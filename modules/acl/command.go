package acl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
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
			adminapi.AddCommands(cmd, listCommand(), addCommand(), removeCommand(), clearCommand())
		},
	})
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list [<name>]",
		Short:   "Shows the lists, or the entries of one",
		Example: "  caddy acl list\n  caddy acl list bans\n  caddy acl list bans --json",
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
	cmd.Flags().BoolP("json", "", false, "Print what the admin API answers")
	return cmd
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
			prefix, path, err := entryPath(flags)
			if err == nil {
				_, err = request(flags, http.MethodDelete, path, nil)
			}
			if err == nil {
				fmt.Printf("removed %s from %s\n", prefix, flags.Arg(0))
			}
			return exitCode(err), err
		}),
	}
}

func clearCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "clear <name>",
		Short:   "Removes all entries of a list",
		Example: "  caddy acl clear bans",
		Args:    cobra.ExactArgs(1),
		RunE: caddycmd.WrapCommandFuncForCobra(func(flags caddycmd.Flags) (int, error) {
			var body []byte
			err := checkListName(flags.Arg(0))
			if err == nil {
				body, err = request(flags, http.MethodDelete, pathOf(flags.Arg(0))+"?all=true", nil)
			}
			var cleared summary
			if err == nil {
				err = json.Unmarshal(body, &cleared)
			}
			if err == nil {
				fmt.Printf("removed all entries of %s (%d)\n", flags.Arg(0), cleared.Removed)
			}
			return exitCode(err), err
		}),
	}
}

func runAdd(flags caddycmd.Flags) (int, error) {
	prefix, path, err := entryPath(flags)
	if err != nil {
		return exitCode(err), err
	}
	wanted := map[string]string{"ttl": flags.String("ttl"), "reason": flags.String("reason"), "by": flags.String("by")}
	if wanted["by"] == "" {
		if me, err := user.Current(); err == nil {
			wanted["by"] = me.Username
		}
	}
	var added entry
	body, err := json.Marshal(wanted)
	if err == nil {
		body, err = request(flags, http.MethodPut, path, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &added)
	}
	if err == nil {
		fmt.Printf("added %s to %s, expires %s\n", prefix, flags.Arg(0), when(added.Expires))
	}
	return exitCode(err), err
}

func pathOf(list string) string { return listsPath + "/" + list }

// entryPath finds what is wrong with the arguments before the server says it.
func entryPath(flags caddycmd.Flags) (prefix netip.Prefix, path string, err error) {
	if err := checkListName(flags.Arg(0)); err != nil {
		return prefix, "", err
	}
	prefix, err = ipset.ParsePrefix(flags.Arg(1))
	return prefix, pathOf(flags.Arg(0)) + "/entries/" + prefix.String(), err
}

func show(flags caddycmd.Flags, path string, show func(io.Writer, []byte) error) (int, error) {
	body, err := request(flags, http.MethodGet, path, nil)
	switch {
	case err != nil:
	case flags.Bool("json"):
		err = adminapi.PrintableJSON(os.Stdout, bytes.NewReader(body))
	default:
		err = show(os.Stdout, body)
	}
	return exitCode(err), err
}

// request talks to the admin API, which says in its own words what it refuses.
func request(flags caddycmd.Flags, method, path string, body []byte) ([]byte, error) {
	client, err := adminapi.ClientOf(flags)
	if err != nil {
		return nil, err
	}
	return client.Do(context.Background(), method, path, body)
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
	fmt.Fprintln(table, "LIST\tENTRIES\tNOT RIGHT")
	for _, list := range lists {
		fmt.Fprintf(table, "%s\t%d\t%s\n", adminapi.Printable(list.Name), list.Size, list.wrong())
	}
	return table.Flush()
}

// wrong says in a few words what is not as it should be with a list.
func (s *summary) wrong() string {
	var wrong []string
	if s.Damaged != "" {
		wrong = append(wrong, "damaged: "+adminapi.Printable(s.Damaged))
	}
	if s.Error != "" {
		wrong = append(wrong, "not loaded: "+adminapi.Printable(s.Error))
	}
	if s.BadLines > 0 {
		wrong = append(wrong, fmt.Sprintf("%d of %d lines left out", s.BadLines, s.Lines))
	}
	if s.MaskedLines > 0 {
		wrong = append(wrong, fmt.Sprintf("%d lines taken as their networks", s.MaskedLines))
	}
	return strings.Join(wrong, ", ")
}

func printEntries(to io.Writer, body []byte) error {
	var list summary
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PREFIX\tADDED\tEXPIRES\tBY\tREASON")
	for _, e := range list.Entries {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.Prefix, when(&e.Added), when(e.Expires), adminapi.Printable(e.By), adminapi.Printable(e.Reason))
	}
	if err := table.Flush(); err != nil || list.Damaged == "" {
		return err
	}
	_, err := fmt.Fprintln(to, "damaged: "+adminapi.Printable(list.Damaged))
	return err
}

// when shows a time as the operator's clock does.
func when(at *time.Time) string {
	if at == nil {
		return "never"
	}
	return at.Local().Format(time.RFC3339)
}
