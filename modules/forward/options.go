package forward

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// Defaults of the options that have one other than zero.
const (
	defaultConnectTimeout = 3 * time.Second
	defaultIdleTimeout    = 10 * time.Minute
	defaultDatagramIdle   = 60 * time.Second
	defaultRetries        = 2
	defaultMaxFails       = 3
	defaultFailDuration   = 10 * time.Second
	defaultStale          = 24 * time.Hour
	defaultKeepAlive      = time.Minute
	defaultGracePeriod    = 10 * time.Second
)

const (
	maxRetries    = 100
	maxMaxFails   = 1000
	maxMaxReplies = 1_000_000_000
)

// presets of the limits, by the value of the option `timeouts`.
var presets = map[string]relay.Limits{
	"": {Connect: defaultConnectTimeout, Idle: defaultIdleTimeout},
	"strict": {
		Connect:   3 * time.Second,
		Idle:      60 * time.Second,
		HalfClose: 15 * time.Second,
		Lifetime:  300 * time.Second,
	},
}

// applyDefaults sets the options that the config does not have, and refuses values that can't work.
func (h *Handler) applyDefaults() error {
	if h.Timeouts != "" {
		if err := checkPreset(h.Timeouts); err != nil {
			return fmt.Errorf("timeouts: %w", err)
		}
	}
	if h.ConnectTimeout != nil && *h.ConnectTimeout == 0 {
		return fmt.Errorf("connect_timeout: %w", errNoTime("0s"))
	}
	limits := presets[h.Timeouts]
	override(&limits.Connect, h.ConnectTimeout)
	override(&limits.Idle, h.IdleTimeout)
	override(&limits.HalfClose, h.HalfCloseTimeout)
	override(&limits.Lifetime, h.MaxLifetime)
	h.limits, h.retries, h.gracePeriod = limits, defaultRetries, defaultGracePeriod
	h.datagramLimits = limits
	if h.IdleTimeout == nil && h.Timeouts == "" {
		h.datagramLimits.Idle = defaultDatagramIdle
	}
	if err := h.applyReplyLimits(); err != nil {
		return err
	}
	if h.Retries != nil {
		h.retries = *h.Retries
	}
	if h.retries < 0 || h.retries > maxRetries {
		return fmt.Errorf(`retries: "%d": expected a whole number from 0 to %d`, h.retries, maxRetries)
	}
	if err := h.applyPolicy(); err != nil {
		return err
	}
	if err := h.applyBalance(); err != nil {
		return err
	}
	if err := h.applyWait(); err != nil {
		return err
	}
	if err := h.applyProxyProtocol(); err != nil {
		return err
	}
	if err := h.applyMeans(); err != nil {
		return err
	}
	if err := h.applyGuard(); err != nil {
		return err
	}
	if err := h.applyHealthCheck(); err != nil {
		return err
	}
	h.keepAlive, h.stale = defaultKeepAlive, defaultStale
	override(&h.stale, h.Stale)
	override(&h.keepAlive, h.KeepAlive)
	override(&h.gracePeriod, h.GracePeriod)
	override(&h.drainTimeout, h.DrainTimeout)
	return nil
}

func (h *Handler) applyPolicy() error {
	h.policy = upstream.Policy{MaxFails: defaultMaxFails, FailDuration: defaultFailDuration}
	if h.MaxFails != nil {
		h.policy.MaxFails = *h.MaxFails
	}
	if h.policy.MaxFails < 0 || h.policy.MaxFails > maxMaxFails {
		return fmt.Errorf(`max_fails: "%d": expected a whole number from 0 to %d`, h.policy.MaxFails, maxMaxFails)
	}
	override(&h.policy.FailDuration, h.FailDuration)
	if h.policy.FailDuration == 0 {
		return fmt.Errorf("fail_duration: %w", errNoTime("0s"))
	}
	return nil
}

func (h *Handler) applyBalance() (err error) {
	if h.LBPolicy == "" {
		return nil
	}
	if h.balance, err = upstream.ParseBalance(h.LBPolicy); err != nil {
		return fmt.Errorf("lb_policy: %w", err)
	}
	known := caddy.NewReplacer().ReplaceKnown(h.balance.Value, "")
	if h.balance.Method == upstream.Hash && !strings.Contains(known, "{") {
		return fmt.Errorf("lb_policy: hash: %q, which is %q for all sessions: expected a placeholder of the connection, such as {l4.tls.server_name}",
			h.balance.Value, known)
	}
	return nil
}

func (h *Handler) applyReplyLimits() error {
	if h.MaxReplies != nil {
		h.maxReplies = *h.MaxReplies
	}
	if h.maxReplies < 0 || h.maxReplies > maxMaxReplies {
		return fmt.Errorf(`max_replies: "%d": expected a whole number from 0 to %d`, h.maxReplies, maxMaxReplies)
	}
	if h.MaxReplyRatio != nil {
		h.maxReplyRatio = *h.MaxReplyRatio
	}
	if h.maxReplyRatio < 0 {
		return fmt.Errorf("max_reply_ratio: %w", errNoRatio(strconv.FormatFloat(h.maxReplyRatio, 'g', -1, 64)))
	}
	return nil
}

// checkReplyLimits refuses limits of datagrams where only streams are accepted.
func (h *Handler) checkReplyLimits(listen []caddy.NetworkAddress) error {
	takesDatagrams := func(addr caddy.NetworkAddress) bool { return gate.Datagrams(addr.Network) }
	if len(listen) == 0 || slices.ContainsFunc(listen, takesDatagrams) {
		return nil
	}
	const expected = "expected a listen address of UDP, but there is only %q"
	switch {
	case h.maxReplies > 0:
		return fmt.Errorf(`max_replies: "%d": `+expected, h.maxReplies, listen[0].String())
	case h.maxReplyRatio > 0:
		return fmt.Errorf(`max_reply_ratio: "%v": `+expected, h.maxReplyRatio, listen[0].String())
	}
	return nil
}

func override(limit *time.Duration, option *caddy.Duration) {
	if option != nil {
		*limit = time.Duration(*option)
	}
}

// checkUpstreams refuses upstreams that are wrong whatever their placeholders stand for, and those that are given already.
func checkUpstreams(names []string, given distinct) (err error) {
	for _, name := range names {
		u := upstream.Upstream{Name: name, Dynamic: strings.Contains(name, "{")}
		if !u.Dynamic {
			if u.Addr, err = upstream.Parse(name); err != nil {
				return err
			}
		}
		if err := given.add(&u); err != nil {
			return err
		}
	}
	return nil
}

func checkPreset(name string) error {
	if _, known := presets[name]; !known || name == "" {
		return fmt.Errorf("%q: expected strict", name)
	}
	return nil
}

func parseRatio(arg string) (float64, error) {
	ratio, err := strconv.ParseFloat(arg, 64)
	if err != nil || !(ratio >= 0 && ratio < math.Inf(1)) {
		return 0, errNoRatio(arg)
	}
	return ratio, nil
}

func errNoRatio(value string) error {
	return fmt.Errorf("%q: expected a number such as 3 or 1.5", value)
}

// errNoTime is the error of a duration that must not be 0: every wait for a server has to end, and no upstream can fail within
// no time.
func errNoTime(value string) error {
	return fmt.Errorf("%q: expected a duration of more than 0", value)
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (h *Handler) UnmarshalJSON(data []byte) error {
	type options Handler
	h.written = string(data)
	return caddyfile.UnmarshalJSON(data, (*options)(h))
}

// Interface guard
var _ json.Unmarshaler = (*Handler)(nil)
