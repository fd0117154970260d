// Command caddy is Caddy with Portgate built in.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/portgate/caddy-portgate"
)

func main() { caddycmd.Main() }
