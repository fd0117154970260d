package contract

import "strings"

// long is more than a burst.
var long = strings.Repeat("long", 5000)

// over ends all sessions of datagrams, which have no end that could be seen: the config has another forward.
var over = reload(with(toUpstream, "idle_timeout", "1h"))

// ask is an exchange of a datagram each way.
var ask = plays(connect, say("x"), hear(0))

// asked is what is written down of it.
const asked = "200 drain, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1"

var udpContracts = []contract{
	// acl
	{
		network: "udp", name: "acl allows", handlers: []object{denied, toUpstream},
		clients: []play{plays(ask, over)}, seen: []string{"x"}, entries: []string{asked},
	},
	{
		network: "udp", name: "acl drops", handlers: []object{denied, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), say("x"), until(1), hearNothing)}, seen: []string{"nothing"},
		entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		network: "udp", name: "acl responds", handlers: []object{with(denied, "on_deny", []string{"respond", "go away"}), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), say("x"), hear(0))}, seen: []string{"go away"},
		entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		network: "udp", name: "acl of a new config cuts a living session", handlers: []object{denied, toUpstream},
		clients: []play{plays(ask, reload(acl("deny", "127.0.0.1"), toUpstream), until(1), say("y"), hearNothing)}, seen: []string{"x, nothing"},
		entries: []string{"200 list_changed, rule deny 127.0.0.1, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1", "403 denied, rule deny 127.0.0.1"},
	},

	// rate_limit
	{
		network: "udp", name: "rate_limit admits and drops", handlers: []object{once, toUpstream},
		clients: []play{ask, plays(connect, say("x"), until(1), hearNothing, over)}, seen: []string{"x", "nothing"},
		entries: []string{"429 limited, rule connections 1/h per ip", asked},
	},
	{
		network: "udp", name: "rate_limit drops datagrams", handlers: []object{limit(object{"datagrams": []object{{"rate": "2/h", "burst": 2}}}), toUpstream},
		clients: []play{plays(ask, say("y"), hear(0), say("z"), untilDropped("limited"), hearNothing, over)}, seen: []string{"x, y, nothing"},
		entries: []string{"200 drain, to UPSTREAM, up 2, down 2, datagrams up 2, datagrams down 2"},
	},

	// forward
	{
		network: "udp", name: "forward, an empty datagram", handlers: []object{toUpstream},
		clients: []play{plays(ask, say(""), hear(0), say("y"), hear(0), over)}, seen: []string{"x, y"},
		entries: []string{"200 drain, to UPSTREAM, up 2, down 2, datagrams up 3, datagrams down 3"},
	},
	{
		network: "udp", name: "forward, no answer, idle_timeout", handlers: []object{with(toUpstream, "idle_timeout", "100ms")}, upstream: silent,
		clients: []play{plays(connect, say("x"), until(1), hearNothing)}, seen: []string{"nothing"},
		entries: []string{"200 idle_timeout, to UPSTREAM, up 1, datagrams up 1"},
	},
	{
		network: "udp", name: "forward, max_replies", handlers: []object{with(toUpstream, "max_replies", 1)},
		clients: []play{plays(ask, until(1))}, seen: []string{"x"},
		entries: []string{"200 max_replies, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1"},
	},
	{
		network: "udp", name: "forward, max_reply_ratio", handlers: []object{with(toUpstream, "max_reply_ratio", 1)},
		upstream: answering(func(b []byte) [][]byte { return [][]byte{b, b} }),
		clients:  []play{plays(ask, untilDropped("reply_ratio"), hearNothing, over)}, seen: []string{"x, nothing"}, entries: []string{asked},
	},
	{
		network: "udp", name: "forward, max_lifetime", handlers: []object{with(toUpstream, "max_lifetime", "1s")},
		clients: []play{plays(ask, until(1))}, seen: []string{"x"},
		entries: []string{"200 max_lifetime, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1"},
	},
	{
		network: "udp", name: "forward, a session outlives a reload", handlers: []object{toUpstream},
		clients: []play{plays(ask, reload(toUpstream), say("y"), hear(0), over)}, seen: []string{"x, y"},
		entries: []string{"200 drain, to UPSTREAM, up 2, down 2, datagrams up 2, datagrams down 2"},
	},
	{
		network: "udp", name: "forward, another config", handlers: []object{toUpstream},
		clients: []play{plays(ask, over, until(1), say("y"), hear(0), reload(toUpstream))}, seen: []string{"x, y"},
		entries: []string{"200 drain, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1", asked},
	},

	// in a row
	{
		network: "udp", name: "acl before rate_limit", handlers: []object{denied, once, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), say("x"), until(1), hearNothing), ask, plays(connect, say("x"), until(2), hearNothing, over)}, seen: []string{"nothing", "x", "nothing"},
		entries: []string{"403 denied, rule deny 127.0.0.2", "429 limited, rule connections 1/h per ip", asked},
	},
	{
		network: "udp", name: "rate_limit before acl", handlers: []object{once, denied, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), say("x"), until(1), hearNothing), plays(ask, over)}, seen: []string{"nothing", "x"},
		entries: []string{"403 denied, rule deny 127.0.0.2", asked},
	},
}
