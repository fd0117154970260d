package redis

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// ErrURL is why a URL is refused. It does not have the URL, in which there may be a password.
var ErrURL = errors.New("expected a URL such as redis://user:password@host:6379/0, rediss:// with TLS")

// parameters are those of a URL's query that are known.
var parameters = []string{"addr", "master_set", "sentinel_user", "sentinel_password", "skip_verify"}

// How long to wait for a server that does not answer.
const (
	dialTimeout = time.Second
	// A connection is given up when it owes an answer for so long. It is much longer than a decision may
	// take, and short enough for a server that comes back to be found again within five seconds.
	connTimeout = 2 * time.Second
)

// Parse reads a URL:
//
//	redis://user:password@host:port/database     one server, or any node of a cluster
//	rediss://...                                 with TLS; ?skip_verify=true trusts every certificate
//	redis://host:port?addr=host:port&addr=...    further nodes of a cluster
//	redis://host:port?addr=...&master_set=name   sentinels, and the name of what they watch over;
//	                                             sentinel_user and sentinel_password are for them
//	unix:///path/to/redis.sock
func Parse(raw string) (rueidis.ClientOption, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return rueidis.ClientOption{}, ErrURL
	}
	query := u.Query()
	for name := range query {
		if strings.Contains(name, "@") {
			return rueidis.ClientOption{}, ErrURL // of a password with a question mark
		}
		if !slices.Contains(parameters, name) {
			return rueidis.ClientOption{}, fmt.Errorf("unknown parameter %q: expected one of %s", name, strings.Join(parameters, ", "))
		}
	}
	options, err := rueidis.ParseURL(raw)
	if err != nil {
		return rueidis.ClientOption{}, ErrURL
	}
	setDialer(&options)
	options.ClientName = "portgate"
	options.ClientSetInfo = []string{} // nothing that a user would need a right for
	options.Dialer.Timeout = dialTimeout
	options.ConnWriteTimeout = connTimeout
	options.DisableCache = true // of no use to a script, and not every server has it
	options.DisableRetry = true // a decision that is late is worth nothing
	// One connection, on which all that is under way at the same time is sent together.
	options.AlwaysPipelining = true
	options.PipelineMultiplex = -1
	options.ReadBufferEachConn, options.WriteBufferEachConn = 64<<10, 64<<10
	if options.Sentinel.MasterSet != "" {
		options.Sentinel.Dialer = options.Dialer
		options.Sentinel.TLSConfig = options.TLSConfig
		options.Sentinel.Username = query.Get("sentinel_user")
		options.Sentinel.Password = query.Get("sentinel_password")
		options.Sentinel.TopologyRefreshInterval = dialTimeout
	}
	return options, nil
}
