package adminapi

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// AddCommands makes a command of those below it, each with the flags of [AddFlags].
func AddCommands(cmd *cobra.Command, all ...*cobra.Command) {
	cmd.AddCommand(all...)
	names := make([]string, 0, len(all))
	for _, sub := range all {
		AddFlags(sub)
		names = append(names, sub.Name())
	}
	cmd.DisableFlagParsing = true // of a subcommand that is not known, the flags are not either
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 && args[0] != "-h" && args[0] != "--help" {
			return fmt.Errorf("%q: expected one of %s", args[0], strings.Join(names, ", "))
		}
		return cmd.Help()
	}
}
