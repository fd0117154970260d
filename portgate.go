// Package portgate registers every module of Portgate with Caddy when it is imported, as this command does:
//
//	xcaddy build --with github.com/portgate/caddy-portgate
package portgate

import (
	_ "github.com/mholt/caddy-l4"

	_ "github.com/portgate/caddy-portgate/modules/acl"
	_ "github.com/portgate/caddy-portgate/modules/admin"
	_ "github.com/portgate/caddy-portgate/modules/admin/console"
	_ "github.com/portgate/caddy-portgate/modules/forward"
	_ "github.com/portgate/caddy-portgate/modules/logging"
	_ "github.com/portgate/caddy-portgate/modules/network"
	_ "github.com/portgate/caddy-portgate/modules/proxyprotocol"
	_ "github.com/portgate/caddy-portgate/modules/ratelimit"
	_ "github.com/portgate/caddy-portgate/modules/settings"
)
