package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
)

const (
	statusPath    = "/portgate/status"
	mappingsPath  = "/portgate/mappings"
	sessionsPath  = "/portgate/sessions"
	upstreamsPath = "/portgate/upstreams"
	listsPath     = "/portgate/lists"
	limitsPath    = "/portgate/limits"
)

func statusCommand() *cobra.Command {
	return shower("status", "Shows how the process is: version, sessions, rates, refusals, what is not as configured", func(c *call) error {
		return c.show(statusPath, new(status))
	})
}

func mappingsCommand() *cobra.Command {
	return shower("mappings", "Shows what is forwarded where", func(c *call) error {
		return c.show(mappingsPath, new(mappings))
	})
}

// shower makes a command without arguments that shows something.
func shower(name, short string, run func(c *call) error) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, Example: "  caddy gate " + name + "\n  caddy gate " + name + " --json"}
	cmd.Flags().BoolP(jsonFlag, "", false, jsonUsage)
	return command(cmd, run)
}

func listsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "lists [<name>]",
		Short:   "Shows the lists of addresses, or the entries of one; caddy acl edits them",
		Example: "  caddy gate lists\n  caddy gate lists bans",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolP(jsonFlag, "", false, jsonUsage)
	return command(cmd, func(c *call) error {
		if c.NArg() == 0 {
			return c.show(listsPath, new(lists))
		}
		if c.Arg(0) == "" {
			return fmt.Errorf("list: %q: expected the name of a list", c.Arg(0))
		}
		return c.show(listsPath+"/"+url.PathEscape(c.Arg(0)), new(list))
	})
}

func limitsCommand() *cobra.Command {
	cmd := shower("limits", "Shows who is nearest to a limit, the nearest first", func(c *call) error {
		path := limitsPath
		if top := c.String("top"); top != "" {
			path += "?" + url.Values{"top": {top}}.Encode()
		}
		return c.show(path, new(limits))
	})
	cmd.Flags().StringP("top", "", "", "How many, 1 to 1000 (default 20)")
	return cmd
}

func upstreamsCommand() *cobra.Command {
	cmd := shower("upstreams", "Shows the upstreams; drains one, takes it out, or sets its weight", func(c *call) error {
		query := make(url.Values)
		for _, name := range []string{"name", "handler"} {
			if value := c.String(name); value != "" {
				query.Set(name, value)
			}
		}
		query["state"] = c.values("state")
		return c.show(upstreamsPath+question(query), new(upstreams))
	})
	cmd.Flags().StringP("name", "", "", "Only those whose name has this in it")
	cmd.Flags().StringP("handler", "", "", "Only those of handlers that have this in their name")
	cmd.Flags().StringArrayP("state", "", nil, "Only those in this state, such as down; may be repeated")
	cmd.Example += `
  caddy gate upstreams --state down --state ejected
  caddy gate upstreams drain 10.0.0.11:5432
  caddy gate upstreams weight 10.0.0.11:5432 3`
	for _, sub := range []*cobra.Command{
		setCommand("drain <name>", "Has an upstream get no new sessions; those that it has go on", `{"state":"drain"}`),
		setCommand("maint <name>", "As drain, and nothing checks the upstream meanwhile", `{"state":"maint"}`),
		setCommand("ready <name>", "Has an upstream get sessions again", `{"state":"ready"}`),
		weightCommand(),
	} {
		adminapi.AddFlags(sub)
		cmd.AddCommand(sub)
	}
	return cmd
}

func setCommand(use, short, body string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1)}
	cmd.Flags().BoolP(jsonFlag, "", false, jsonUsage)
	return command(cmd, func(c *call) error { return c.set(c.Arg(0), []byte(body)) })
}

func weightCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "weight <name> <number>|config",
		Short: "Sets the weight of an upstream, or gives back that of the config",
		Args:  cobra.ExactArgs(2),
	}
	cmd.Flags().BoolP(jsonFlag, "", false, jsonUsage)
	return command(cmd, func(c *call) error {
		var weight *int
		if text := c.Arg(1); text != "config" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 {
				return fmt.Errorf("weight: %q: expected a whole number, or config", text)
			}
			weight = &n
		}
		body, err := json.Marshal(map[string]*int{"weight": weight})
		if err != nil {
			return err
		}
		return c.set(c.Arg(0), body)
	})
}

// set says something of an upstream, and shows what it is then.
func (c *call) set(name string, body []byte) error {
	if name == "" {
		return fmt.Errorf("upstream: %q: expected the name of an upstream", name)
	}
	answer, err := c.client.Do(c.ctx, http.MethodPatch, upstreamsPath+"/"+url.PathEscape(name), body)
	if err != nil {
		return err
	}
	return c.print(bytes.NewReader(answer), new(upstreams))
}

// question is the part of a URL behind its path.
func question(query url.Values) string {
	if text := query.Encode(); text != "" {
		return "?" + text
	}
	return ""
}
