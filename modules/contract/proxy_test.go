package contract

// header is what a load balancer says of a client.
const header = "PROXY TCP4 192.0.2.7 192.0.2.1 4321 80\r\n"

// behindBalancer believes everybody with an address of 127.0.0.1.
var behindBalancer = object{"handler": "accept_proxy", "from": []string{"127.0.0.1"}}

var proxyContracts = []contract{
	{
		name: "accept_proxy takes the header's client", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connect, say(header+"x"), hear(1), finish, hearAll)}, seen: []string{"x, end"},
		entries: []string{"200 client_fin, from 192.0.2.7:4321, to UPSTREAM, up 1, down 1"},
	},
	{
		name: "accept_proxy waits for the rest of a header", handlers: []object{with(behindBalancer, "timeout", "1m"), toUpstream},
		clients: []play{plays(connect, say(header[:9]), hearNothing, say(header[9:]), say("x"), hear(1), finish, hearAll)}, seen: []string{"nothing, x, end"},
		entries: []string{"200 client_fin, from 192.0.2.7:4321, to UPSTREAM, up 1, down 1"},
	},
	{
		name: "accept_proxy serves others as who they are", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), say(header), hear(len(header)), finish, hearAll)}, seen: []string{header + ", end"},
		entries: []string{"200 client_fin, to UPSTREAM, up 40, down 40"},
	},
	{
		name: "accept_proxy refuses others", handlers: []object{with(behindBalancer, "others", "refuse"), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll)}, seen: []string{"end"}, entries: []string{"403 denied, rule accept_proxy others refuse"},
	},
	{
		name: "accept_proxy ends a connection without a header", handlers: []object{with(behindBalancer, "timeout", "100ms"), toUpstream},
		clients: []play{plays(connect, hearAll)}, seen: []string{"end"},
		entries: []string{"400 proxy_header, error expected a complete PROXY protocol header within 100ms: after 0 bytes: i/o timeout"},
	},
	{
		name: "accept_proxy ends a connection with something else", handlers: []object{behindBalancer, toUpstream},
		clients: []play{plays(connect, say("GET / HTTP/1.1\r\n\r\n"), hearAll)}, seen: []string{"end or reset"}, entries: []string{"400 proxy_header, error expected a PROXY protocol header"},
	},
	{
		name: "acl judges the header's client", handlers: []object{behindBalancer, acl("deny", "192.0.2.7"), toUpstream},
		clients: []play{plays(connect, say(header), hearAll)}, seen: []string{"end"},
		entries: []string{"403 denied, from 192.0.2.7:4321, rule deny 192.0.2.7"},
	},
	{
		name: "rate_limit counts the header's client", handlers: []object{behindBalancer, once, toUpstream},
		clients: []play{plays(connect, say(header+"x"), hear(1), finish, hearAll), plays(connect, say(header), hearAll)}, seen: []string{"x, end", "end"},
		entries: []string{"200 client_fin, from 192.0.2.7:4321, to UPSTREAM, up 1, down 1", "429 limited, from 192.0.2.7:4321, rule connections 1/h per ip"},
	},
}
