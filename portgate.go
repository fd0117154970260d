// Package portgate makes Caddy a layer-4 gateway. Importing it registers every module of
// Portgate, which is what
//
//	xcaddy build --with github.com/portgate/caddy-portgate
//
// does.
package portgate

import (
	_ "github.com/mholt/caddy-l4"

	_ "github.com/portgate/caddy-portgate/modules/acl"
	_ "github.com/portgate/caddy-portgate/modules/forward"
	_ "github.com/portgate/caddy-portgate/modules/network"
	_ "github.com/portgate/caddy-portgate/modules/proxyprotocol"
	_ "github.com/portgate/caddy-portgate/modules/ratelimit"
	_ "github.com/portgate/caddy-portgate/modules/settings"
)
