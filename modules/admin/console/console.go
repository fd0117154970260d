// Package console has the command `caddy gate`, which shows what a running Caddy does as a gateway, and steers it. It is a package of its own so that what only
// imports Portgate's modules gets no library for terminals.
package console

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "gate",
		Short: "Shows sessions, upstreams, lists and limits of a running Caddy, and steers them",
		Long: `
Shows what a running Caddy does as a gateway, and steers it, through its admin API.

The admin API is that of --address, or else that of the config file, or else
Caddy's default, localhost:2019. With --json a command prints what the API
answers, for scripts.
`,
		CobraFunc: func(cmd *cobra.Command) {
			adminapi.AddCommands(cmd, topCommand(), sessionsCommand(), upstreamsCommand(), mappingsCommand(), listsCommand(), limitsCommand(), statusCommand())
		},
	})
}

// command makes a command that runs with a client.
func command(cmd *cobra.Command, run func(c *call) error) *cobra.Command {
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(flags caddycmd.Flags) (int, error) {
		client, err := adminapi.ClientOf(flags)
		if err == nil {
			err = run(&call{Flags: flags, client: client, ctx: context.Background(), in: os.Stdin, out: os.Stdout})
		}
		if err != nil {
			return caddy.ExitCodeFailedStartup, err
		}
		return caddy.ExitCodeSuccess, nil
	})
	return cmd
}

// call is a command that runs.
type call struct {
	caddycmd.Flags
	client *adminapi.Client
	ctx    context.Context
	in     *os.File
	out    io.Writer
}

const (
	jsonFlag  = "json"
	jsonUsage = "Print what the admin API answers"
)

// show gets what the API has at a path into v, and prints the table that it makes; with --json, the answer as it is.
func (c *call) show(path string, v interface{ table() *table }) error {
	answer, err := c.client.Open(c.ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	return c.print(answer, v)
}

func (c *call) print(answer io.Reader, v interface{ table() *table }) error {
	if c.Bool(jsonFlag) {
		return adminapi.PrintableJSON(c.out, answer)
	}
	if err := json.NewDecoder(answer).Decode(v); err != nil {
		return notOurs(err)
	}
	return v.table().write(c.out)
}

// values returns those of a flag that may be given several times. GetStringArray would lose one that is empty, and with it a filter.
func (c *call) values(name string) []string {
	return c.Lookup(name).Value.(interface{ GetSlice() []string }).GetSlice()
}
