package contract

// headerFor is what a load balancer says in front of each datagram: version 2, of a client 192.0.2.n with port 4321.
func headerFor(n byte) string {
	return "\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c" + "\xc0\x00\x02" + string([]byte{n}) + "\xc0\x00\x02\x01" + "\x10\xe1\x00\x35"
}

var seven, eight = headerFor(7), headerFor(8)

// ofItself is what a load balancer says in a health check.
const ofItself = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// byFirst is for load balancers that send the header in the first datagram of a session.
var byFirst = with(behindBalancer, "udp", "first")

const (
	noHeader  = "400 proxy_header, error expected a PROXY protocol header"
	askedFrom = "200 drain, from 192.0.2.7:4321, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1"
)

// asks is an exchange of one datagram of a client.
func asks(header, text string) play { return plays(say(header+text), hear(0)) }

var proxyUDPContracts = []contract{
	{
		network: "udp", name: "accept_proxy tells the clients of one socket apart", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connect, asks(seven, "a"), asks(eight, "b"), asks(seven, "cc"), asks(ofItself, "d"), asks(eight, ""), over)},
		seen:    []string{"a, b, cc, d"},
		entries: []string{
			"200 drain, from 192.0.2.7:4321, to UPSTREAM, up 3, down 3, datagrams up 2, datagrams down 2",
			"200 drain, from 192.0.2.8:4321, to UPSTREAM, up 1, down 1, datagrams up 2, datagrams down 2",
			asked,
		},
	},
	{
		network: "udp", name: "accept_proxy drops what has no header", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connect, say("x"), untilDropped("proxy_header"), until(1), hearNothing, say(header), until(2), asks(seven, "y"), over)},
		seen:    []string{"nothing, y"},
		entries: []string{noHeader, noHeader + " of version 2, and not of version 1: that is for TCP alone", askedFrom},
	},
	{
		network: "udp", name: "accept_proxy serves others as who they are", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), asks(seven, ""), over)}, seen: []string{seven},
		entries: []string{"200 drain, to UPSTREAM, up 28, down 28, datagrams up 1, datagrams down 1"},
	},
	{
		network: "udp", name: "accept_proxy refuses others", handlers: []object{with(behindBalancer, "others", "refuse"), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), say(seven), until(1), hearNothing)}, seen: []string{"nothing"},
		entries: []string{"403 denied, rule accept_proxy others refuse"},
	},
	{
		network: "udp", name: "acl judges the header's client", handlers: []object{behindBalancer, acl("deny", "192.0.2.8"), toUpstream},
		clients: []play{plays(connect, say(eight+"x"), until(1), hearNothing, asks(seven, "y"), over)}, seen: []string{"nothing, y"},
		entries: []string{"403 denied, from 192.0.2.8:4321, rule deny 192.0.2.8", askedFrom},
	},
	{
		network: "udp", name: "rate_limit counts the header's client", handlers: []object{behindBalancer, once, toUpstream},
		clients: []play{
			plays(connect, asks(seven, "x")),
			plays(connect, say(seven+"y"), until(1), hearNothing, asks(eight, "z"), over),
		},
		seen: []string{"x", "nothing, z"},
		entries: []string{
			"429 limited, from 192.0.2.7:4321, rule connections 1/h per ip", askedFrom,
			"200 drain, from 192.0.2.8:4321, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1",
		},
	},
	{
		network: "udp", name: "a session behind accept_proxy outlives a reload", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connect, asks(seven, "x"), reload(behindBalancer, toUpstream), asks(seven, "y"), over)}, seen: []string{"x, y"},
		entries: []string{"200 drain, from 192.0.2.7:4321, to UPSTREAM, up 2, down 2, datagrams up 2, datagrams down 2"},
	},
	{
		network: "udp", name: "a reload with accept_proxy takes the load balancer for nobody's client any more", handlers: []object{toUpstream},
		clients: []play{plays(connect, asks(seven, ""), reload(behindBalancer, toUpstream), say("x"), until(1), hearNothing, asks(seven, "y"), over)},
		seen:    []string{seven + ", nothing, y"},
		entries: []string{"200 drain, to UPSTREAM, up 28, down 28, datagrams up 1, datagrams down 1", noHeader, askedFrom},
	},
	{
		network: "udp", name: "accept_proxy, the first datagram has a header", handlers: []object{byFirst, toUpstream},
		clients: []play{plays(connect, say("w"), until(1), hearNothing, asks(seven, "x"), asks("", "y"), asks("", ""), asks(seven, "z"), over)},
		seen:    []string{"nothing, x, y, z"},
		entries: []string{noHeader, "200 drain, from 192.0.2.7:4321, to UPSTREAM, up 3, down 3, datagrams up 4, datagrams down 4"},
	},
	{
		network: "udp", name: "accept_proxy, a client writes a header", handlers: []object{byFirst, acl("deny", "192.0.2.7"), toUpstream},
		clients: []play{plays(connect, asks(eight, "x"), say(seven+"y"), until(1), say("z"), hearNothing, over)}, seen: []string{"x, nothing"},
		entries: []string{
			"400 proxy_header, error expected no PROXY protocol header for another client behind the first datagram of a session",
			"200 drain, from 192.0.2.8:4321, to UPSTREAM, up 1, down 1, datagrams up 1, datagrams down 1",
		},
	},

	// Caddy's own networks have one session for each address and port that datagrams come from.
	{
		network: "udp", name: "accept_proxy, one client of a socket", handlers: []object{behindBalancer, acl("deny", "127.0.0.1"), toUpstream}, only: []entrance{stock},
		clients: []play{plays(connect, asks(seven, "x"), asks(seven, ""), asks(seven, "y"), say("z"), until(1), say(eight+"z"), until(2), hearNothing, asks(seven, "y"), over)},
		seen:    []string{"x, y, nothing, y"},
		entries: []string{
			noHeader, "400 proxy_header, error client 192.0.2.8:4321 behind client 192.0.2.7:4321: expected one client for each address and port of a load balancer, or a gate network",
			"200 drain, from 192.0.2.7:4321, to UPSTREAM, up 3, down 3, datagrams up 4, datagrams down 4",
		},
	},
	{
		network: "udp", name: "accept_proxy, the first datagram of a socket has a header", handlers: []object{byFirst, toUpstream}, only: []entrance{stock},
		clients: []play{plays(connect, asks(seven, "x"), asks("", "y"), asks(seven, "z"), say(eight+"a"), until(1), say("b"), hearNothing, over)}, seen: []string{"x, y, z, nothing"},
		entries: []string{
			"400 proxy_header, error client 192.0.2.8:4321 behind client 192.0.2.7:4321: expected one client for each address and port of a load balancer, or a gate network",
			"200 drain, from 192.0.2.7:4321, to UPSTREAM, up 3, down 3, datagrams up 3, datagrams down 3",
		},
	},
	{
		network: "udp", name: "accept_proxy, no header on a network of Caddy's", handlers: []object{behindBalancer, toUpstream}, only: []entrance{stock},
		clients: []play{plays(connect, say("x"), until(1), hearNothing)}, seen: []string{"nothing"}, entries: []string{noHeader},
	},
	{
		network: "udp", name: "accept_proxy, others on a network of Caddy's", handlers: []object{behindBalancer, toUpstream}, only: []entrance{stock},
		clients: []play{plays(connectFrom("127.0.0.2"), asks("", "x"), over)}, seen: []string{"x"}, entries: []string{asked},
	},
}
