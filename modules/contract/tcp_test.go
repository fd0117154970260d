package contract

import "time"

// The handlers of the cases.
var (
	toUpstream = forward("upstream")

	denied = acl("deny", "127.0.0.2")
	single = object{"handler": "forward", "upstreams": []object{{"address": "upstream", "max_connections": 1}}}
	once   = limit(object{"connections": []object{{"rate": "1/h", "burst": 1}}})
)

func forward(to ...string) object { return object{"handler": "forward", "to": to} }

// with is a handler with one more option.
func with(h object, name string, value any) object {
	changed := object{name: value}
	for n, v := range h {
		changed[n] = v
	}
	return changed
}

// acl has one rule.
func acl(action string, values ...string) object {
	return object{"handler": "acl", "rules": []object{{action: values}}}
}

func limit(limits object) object { return with(limits, "handler", "rate_limit") }

// greet is an exchange of a byte each way, after which the client ends in order.
var greet = plays(connect, say("x"), hear(1), finish, hearAll)

// greeted is what is written down of it.
const greeted = "200 client_fin, to UPSTREAM, up 1, down 1"

var tcpContracts = []contract{
	// acl
	{
		name: "acl allows", handlers: []object{denied, toUpstream},
		clients: []play{greet}, seen: []string{"x, end"}, entries: []string{greeted},
	},
	{
		name: "acl closes", handlers: []object{denied, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll)}, seen: []string{"end"}, entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		name: "acl resets", handlers: []object{with(denied, "on_deny", []string{"reset"}), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll)}, seen: []string{"reset"}, entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		name: "acl drops", handlers: []object{with(denied, "on_deny", []string{"drop"}), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearNothing)}, seen: []string{"nothing or reset"}, entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		name: "acl holds", handlers: []object{with(denied, "on_deny", []string{"tarpit", "100ms"}), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll, notBefore(100*time.Millisecond))}, seen: []string{"end"}, entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		name: "acl responds", handlers: []object{with(denied, "on_deny", []string{"respond", "go away"}), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll)}, seen: []string{"go away, end"}, entries: []string{"403 denied, rule deny 127.0.0.2"},
	},
	{
		name: "acl denies by default", handlers: []object{acl("allow", "127.0.0.3"), toUpstream},
		clients: []play{plays(connect, hearAll), plays(connectFrom("127.0.0.3"), say("x"), hear(1), finish, hearAll)},
		seen:    []string{"end", "x, end"},
		entries: []string{"403 denied, rule default deny", greeted},
	},
	{
		name: "acl of a new config cuts a living session", handlers: []object{denied, toUpstream},
		clients: []play{plays(connect, say("x"), hear(1), reload(acl("deny", "127.0.0.1"), toUpstream), hearAll)},
		seen:    []string{"x, end"},
		entries: []string{"200 list_changed, rule deny 127.0.0.1, to UPSTREAM, up 1, down 1"},
	},

	// rate_limit
	{
		name: "rate_limit admits and closes", handlers: []object{once, toUpstream},
		clients: []play{greet, plays(connect, hearAll)}, seen: []string{"x, end", "end"},
		entries: []string{greeted, "429 limited, rule connections 1/h per ip"},
	},
	{
		name: "rate_limit resets", handlers: []object{with(once, "on_limit", []string{"reset"}), toUpstream},
		clients: []play{greet, plays(connect, hearAll)}, seen: []string{"x, end", "reset"},
		entries: []string{greeted, "429 limited, rule connections 1/h per ip"},
	},
	{
		name: "rate_limit drops", handlers: []object{with(once, "on_limit", []string{"drop"}), toUpstream},
		clients: []play{greet, plays(connect, hearNothing)}, seen: []string{"x, end", "nothing or reset"},
		entries: []string{greeted, "429 limited, rule connections 1/h per ip"},
	},
	{
		name: "rate_limit responds", handlers: []object{with(once, "on_limit", []string{"respond", "later"}), toUpstream},
		clients: []play{greet, plays(connect, hearAll)}, seen: []string{"x, end", "later, end"},
		entries: []string{greeted, "429 limited, rule connections 1/h per ip"},
	},
	{
		name: "rate_limit would refuse", handlers: []object{with(once, "dry_run", true), toUpstream},
		clients: []play{greet, greet}, seen: []string{"x, end", "x, end"}, entries: []string{greeted, greeted},
	},
	{ // is no step of the fast path
		name: "rate_limit does not hold connections for longer than max_delay", only: []entrance{chain, stock},
		handlers: []object{limit(object{"connections": []object{{"rate": "1/h"}}, "algorithm": "leaky_bucket", "max_delay": "1s"}), toUpstream},
		clients:  []play{greet, plays(connect, hearAll)}, seen: []string{"x, end", "end"},
		entries: []string{greeted, "429 limited, rule connections 1/h per ip"},
	},
	{
		name: "rate_limit counts sessions at once", handlers: []object{limit(object{"concurrent": []object{{"max": 1}}}), toUpstream},
		clients: []play{
			plays(connect, say("x"), hear(1), beside(plays(connect, hearAll)), finish, hearAll, until(2)),
			greet,
		},
		seen:    []string{"x, end, end", "x, end"},
		entries: []string{"429 limited, rule concurrent 1 per ip", greeted, greeted},
	},
	{
		name: "rate_limit holds the bandwidth", handlers: []object{limit(object{"bandwidth": []object{{"direction": "down", "rate": "1MB/s", "burst": "4KB"}}}), toUpstream},
		clients: []play{plays(connect, say(long), hear(len(long)), finish, hearAll)}, seen: []string{long + ", end"},
		entries: []string{"200 client_fin, to UPSTREAM, up 20000, down 20000"},
	},

	// forward
	{
		name: "forward, the upstream speaks first and ends", handlers: []object{toUpstream}, upstream: greeting("hello"),
		clients: []play{plays(connect, hearAll)}, seen: []string{"hello, end"}, entries: []string{"200 upstream_fin, to UPSTREAM, down 5"},
	},
	{
		name: "forward, an answer after the client's end", handlers: []object{toUpstream}, upstream: afterEnd("answer"),
		clients: []play{plays(connect, say("question"), finish, hearAll)}, seen: []string{"answer, end"},
		entries: []string{"200 client_fin, to UPSTREAM, up 8, down 6"},
	},
	{
		name: "forward, the client resets", handlers: []object{toUpstream},
		clients: []play{plays(connect, say("x"), hear(1), reset)}, seen: []string{"x"}, entries: []string{"200 client_reset, to UPSTREAM, up 1, down 1"},
	},
	{
		name: "forward, the upstream resets", handlers: []object{toUpstream}, upstream: resetting,
		clients: []play{plays(connect, say("x"), hearAll)}, seen: []string{"reset"}, entries: []string{"200 upstream_reset, to UPSTREAM, up 1"},
	},
	{
		name: "forward, nobody listens", handlers: []object{forward("dead")},
		clients: []play{plays(connect, hearAll)}, seen: []string{"reset"},
		entries: []string{"502 connect_failed, to DEAD, error dial tcp DEAD: connect: connection refused"},
	},
	{
		name: "forward, the next upstream", handlers: []object{forward("dead", "upstream")},
		clients: []play{greet}, seen: []string{"x, end"}, entries: []string{greeted},
	},
	{
		name: "forward, idle_timeout", handlers: []object{with(toUpstream, "idle_timeout", "1s")},
		clients: []play{plays(connect, say("x"), hear(1), hearAll, notBefore(time.Second))}, seen: []string{"x, end"}, entries: []string{"200 idle_timeout, to UPSTREAM, up 1, down 1"},
	},
	{
		name: "forward, half_close_timeout", handlers: []object{with(toUpstream, "half_close_timeout", "100ms")}, upstream: silent,
		clients: []play{plays(connect, say("x"), finish, hearAll)}, seen: []string{"end"}, entries: []string{"200 client_fin, to UPSTREAM, up 1"},
	},
	{
		name: "forward, max_lifetime", handlers: []object{with(toUpstream, "max_lifetime", "1s")},
		clients: []play{plays(connect, say("x"), hear(1), hearAll, notBefore(time.Second))}, seen: []string{"x, end"}, entries: []string{"200 max_lifetime, to UPSTREAM, up 1, down 1"},
	},
	{
		name: "forward, drain_timeout", handlers: []object{with(toUpstream, "drain_timeout", "100ms")},
		clients: []play{plays(connect, say("x"), hear(1), reload(toUpstream), hearAll)}, seen: []string{"x, end"}, entries: []string{"200 drain, to UPSTREAM, up 1, down 1"},
	},
	{
		name: "forward, a session outlives a reload", handlers: []object{toUpstream},
		clients: []play{plays(connect, say("x"), hear(1), reload(with(toUpstream, "retries", 1)), say("y"), hear(1), finish, hearAll)}, seen: []string{"x, y, end"},
		entries: []string{"200 client_fin, to UPSTREAM, up 2, down 2"},
	},

	{
		name: "forward, a full upstream", handlers: []object{single},
		clients: []play{plays(connect, say("x"), hear(1), beside(plays(connect, hearAll)), finish, hearAll)}, seen: []string{"x, reset, end"},
		entries: []string{"503 no_upstream, error all upstreams have as many sessions as they may (max_connections)", greeted},
	},
	{
		name: "forward, a queue", handlers: []object{with(single, "queue", object{"count": 1, "duration": "1h"})},
		clients: []play{plays(connect, say("x"), hear(1), func(first *actor) {
			second := &actor{stage: first.stage}
			plays(connect, say("y"), untilQueued(1), beside(plays(connect, hearAll)))(second)
			plays(finish, hearAll)(first)
			plays(hear(1), finish, hearAll)(second)
			second.leave()
			first.seen = append(first.seen, second.seen...)
		})},
		seen:    []string{"x, end, reset, y, end"},
		entries: []string{greeted, greeted, "503 queue_full, error the queue is full: 1 wait"},
	},
	{
		name: "forward, tries again", handlers: []object{with(with(forward("dead"), "lb_try_duration", "500ms"), "lb_try_interval", "200ms")},
		clients: []play{plays(connect, hearAll, notBefore(400*time.Millisecond))}, seen: []string{"reset"},
		entries: []string{"502 connect_failed, to DEAD, error dial tcp DEAD: connect: connection refused"},
	},

	// in a row
	{
		name: "acl before rate_limit", handlers: []object{denied, once, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll), greet, plays(connect, hearAll)}, seen: []string{"end", "x, end", "end"},
		entries: []string{"403 denied, rule deny 127.0.0.2", greeted, "429 limited, rule connections 1/h per ip"},
	},
	{
		name: "rate_limit before acl", handlers: []object{once, denied, toUpstream},
		clients: []play{plays(connectFrom("127.0.0.2"), hearAll), plays(connectFrom("127.0.0.2"), hearAll), greet}, seen: []string{"end", "end", "x, end"},
		entries: []string{"403 denied, rule deny 127.0.0.2", "429 limited, rule connections 1/h per ip", greeted},
	},
	{
		name: "acl before acl", handlers: []object{denied, with(acl("deny", "127.0.0.3"), "on_deny", []string{"reset"}), toUpstream},
		clients: []play{plays(connectFrom("127.0.0.3"), hearAll), plays(connectFrom("127.0.0.2"), hearAll), greet}, seen: []string{"reset", "end", "x, end"},
		entries: []string{"403 denied, rule deny 127.0.0.3", "403 denied, rule deny 127.0.0.2", greeted},
	},
	{
		name:     "rate_limit before rate_limit",
		handlers: []object{limit(object{"name": "first", "connections": []object{{"rate": "2/h", "burst": 2}}}), with(once, "on_limit", []string{"reset"}), toUpstream},
		clients:  []play{greet, plays(connect, hearAll), plays(connect, hearAll)}, seen: []string{"x, end", "reset", "end"},
		entries: []string{greeted, "429 limited, rule connections 1/h per ip", "429 limited, rule first: connections 2/h per ip"},
	},
}
