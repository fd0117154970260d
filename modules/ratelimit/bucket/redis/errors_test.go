package redis

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// refusal is a way for a server to be there and not to do what it is asked.
type refusal struct {
	args       []string
	reason     string
	fail, heal func(*admin)
	while      bool // a store that uses the server gets the same answer: else its connection breaks first
}

// admin is a connection on which a server does what it is told, whatever it does on others.
type admin struct {
	*server
	client rueidis.Client
}

// gate is the URL for a user other than the one who changes the server.
func (a *admin) gate() string { return strings.Replace(a.url, "unix://", "unix://gate:secret@", 1) }

func (a *admin) do(args ...string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := a.client.Do(ctx, a.client.B().Arbitrary(args...).Build()).Error(); err != nil && !rueidis.IsRedisNil(err) {
		a.t.Fatalf("%v: %v", args, err)
	}
}

func administer(t *testing.T, s *server) *admin {
	t.Helper()
	options, err := Parse(s.url)
	must(t, err)
	options.ForceSingleClient = true
	options.Dialer.KeepAlive, options.ConnWriteTimeout = time.Hour, time.Minute
	client, err := rueidis.NewClient(options)
	must(t, err)
	t.Cleanup(client.Close)
	a := &admin{s, client}
	a.do("ACL", "SETUSER", "gate", "on", ">secret", "~*", "+@all")
	return a
}

var refusals = map[string]refusal{
	"a replica": {
		reason: "READONLY You can't write against a read only replica.", while: true,
		fail: func(a *admin) { a.do("REPLICAOF", "127.0.0.1", "1") },
		heal: func(a *admin) { a.do("REPLICAOF", "NO", "ONE") },
	},
	"a replica without its master": {
		args:   []string{"--replica-serve-stale-data", "no"},
		reason: "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", while: true,
		fail: func(a *admin) { a.do("REPLICAOF", "127.0.0.1", "1") },
		heal: func(a *admin) { a.do("REPLICAOF", "NO", "ONE") },
	},
	"too few replicas": {
		reason: "NOREPLICAS Not enough good replicas to write.", while: true,
		fail: func(a *admin) { a.do("CONFIG", "SET", "min-replicas-to-write", "1") },
		heal: func(a *admin) { a.do("CONFIG", "SET", "min-replicas-to-write", "0") },
	},
	"no memory": {
		reason: "OOM command not allowed when used memory > 'maxmemory'.", while: true,
		fail: func(a *admin) { a.do("CONFIG", "SET", "maxmemory", "1") },
		heal: func(a *admin) { a.do("CONFIG", "SET", "maxmemory", "0") },
	},
	"no disk": {
		args:   []string{"--enable-protected-configs", "yes"},
		reason: "MISCONF Redis is configured to save RDB snapshots", while: true,
		fail: func(a *admin) {
			dir, err := os.MkdirTemp(a.t.TempDir(), "")
			must(a.t, err)
			a.do("CONFIG", "SET", "save", "3600 1000000", "dir", dir)
			must(a.t, os.Remove(dir))
			a.do("BGSAVE")
			eventually(a.t, func() error {
				if !strings.Contains(a.info("persistence"), "rdb_last_bgsave_status:err") {
					return errNotYet
				}
				return nil
			})
		},
		heal: func(a *admin) { a.do("CONFIG", "SET", "save", "") },
	},
	"a script that does not end": {
		args:   []string{"--busy-reply-threshold", "100"},
		reason: "BUSY Redis is busy running a script.",
		fail: func(a *admin) {
			go func() { _, _ = a.tryDo("EVAL", "while true do end", "0") }()
			eventually(a.t, func() error {
				if _, err := a.tryDo("PING"); err == nil || !strings.Contains(err.Error(), "BUSY") {
					return errNotYet
				}
				return nil
			})
		},
		heal: func(a *admin) { a.do("SCRIPT", "KILL") },
	},
	"other keys": {
		reason: "keys used as arguments", while: true,
		fail: func(a *admin) { a.do("ACL", "SETUSER", "gate", "resetkeys", "~other:*") },
		heal: func(a *admin) { a.do("ACL", "SETUSER", "gate", "~test:*") },
	},
	"no scripts": {
		reason: "'evalsha' command", while: true,
		fail: func(a *admin) { a.do("ACL", "SETUSER", "gate", "-evalsha") },
		heal: func(a *admin) { a.do("ACL", "SETUSER", "gate", "+evalsha") },
	},
	"no command that only limits on concurrent connections need": {
		reason: "command", while: true,
		fail: func(a *admin) { a.do("ACL", "SETUSER", "gate", "-hgetall") },
		heal: func(a *admin) { a.do("ACL", "SETUSER", "gate", "+hgetall") },
	},
	"no command that only rates need": {
		reason: "command", while: true,
		fail: func(a *admin) { a.do("ACL", "SETUSER", "gate", "-set") },
		heal: func(a *admin) { a.do("ACL", "SETUSER", "gate", "+set") },
	},
	"a user who is switched off": {
		reason: "WRONGPASS",
		fail:   func(a *admin) { a.do("ACL", "SETUSER", "gate", "off") },
		heal:   func(a *admin) { a.do("ACL", "SETUSER", "gate", "on") },
	},
	"too many clients": {
		reason: "max number of clients reached",
		fail:   func(a *admin) { a.do("CONFIG", "SET", "maxclients", "1") },
		heal:   func(a *admin) { a.do("CONFIG", "SET", "maxclients", "100") },
	},
	"a cluster without slots": {
		args:   []string{"--cluster-enabled", "yes"},
		reason: "the slot has no redis node",
		fail:   func(*admin) {},
	},
	"a cluster that is down": {
		args:   []string{"--cluster-enabled", "yes"},
		reason: "CLUSTERDOWN",
		fail: func(a *admin) {
			a.do("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
			a.up()
			a.do("CLUSTER", "DELSLOTSRANGE", "0", "0")
			eventually(a.t, func() error {
				if !strings.Contains(a.cluster(), "cluster_state:fail") {
					return errNotYet
				}
				return nil
			})
		},
		heal: func(a *admin) { a.do("CLUSTER", "ADDSLOTSRANGE", "0", "0"); a.up() },
	},
}

func (a *admin) info(section string) string { return a.text("INFO", section) }

func (a *admin) cluster() string { return a.text("CLUSTER", "INFO") }

func (a *admin) text(args ...string) string {
	a.t.Helper()
	text, err := a.client.Do(context.Background(), a.client.B().Arbitrary(args...).Build()).ToString()
	must(a.t, err)
	return text
}

// up waits until the cluster serves.
func (a *admin) up() {
	a.t.Helper()
	eventually(a.t, func() error {
		if !strings.Contains(a.cluster(), "cluster_state:ok") {
			return errNotYet
		}
		return nil
	})
}

// Whatever a server refuses is said once, however long it does and however often it is asked, and that it is over; meanwhile the
// policy holds. That is so when it refuses from the beginning, and when it begins while it is used.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, r := range refusals {
		t.Run(name+" from the beginning", func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			a := administer(t, startServer(t, append(r.args, "--port", portOf(addr), "--bind", "127.0.0.1", "--cluster-port", portOf(freeAddr(t)))...))
			r.fail(a)
			store, said := denying(t, "redis://gate:secret@"+addr)
			refuses(t, store, said, r.reason)
			if r.heal != nil {
				r.heal(a)
				recovers(t, store, said, r.reason)
			}
		})
		if !r.while {
			continue
		}
		t.Run(name+" later", func(t *testing.T) {
			t.Parallel()
			a := administer(t, startServer(t, r.args...))
			store, said := denying(t, a.gate())
			eventually(t, store.connected)
			r.fail(a)
			refuses(t, store, said, r.reason)
			r.heal(a)
			recovers(t, store, said, r.reason)
		})
	}
}

// denying returns a store that refuses everything while Redis can't be asked.
func denying(t *testing.T, url string) (*Store, *told) {
	t.Helper()
	said := new(told)
	options := Options{URL: url, Timeout: patient, Prefix: "test:", Name: "limits", OnError: Deny}
	said.listen(&options)
	store, err := New(options, bucket.NewMemory(10))
	must(t, err)
	t.Cleanup(store.Close)
	return store, said
}

// refuses requires that a reason is said, and nothing else, while decisions and tries fail for it.
func refuses(t *testing.T, store *Store, said *told, reason string) {
	t.Helper()
	both := append(text(hourly(t, 1, 1000), "x"), text(bucket.NewCount(2, 1000), "x")...)
	eventually(t, func() error {
		if d := store.Decide(now(), both); d.Failed && !d.Refused {
			t.Fatalf("%+v, want it refused", d)
		}
		return said.said(reason)
	})
	failing(t, said, 6)
	for range 100 {
		if d := store.Decide(now(), both); !d.Failed || !d.Refused {
			t.Fatalf("%+v, want it refused because it failed", d)
		}
	}
	must(t, said.said(reason))
	if strings.Contains(said.all()[0], "secret") {
		t.Errorf("the password is said: %q", said.all())
	}
}

func recovers(t *testing.T, store *Store, said *told, reason string) {
	t.Helper()
	eventually(t, func() error { return said.said(reason, "works again") })
	works(t, store)
	must(t, said.said(reason, "works again"))
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// A server that is still loading what it has stored serves later.
func TestLoading(t *testing.T) {
	t.Parallel()
	server := newServer(t, "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
	server.start()
	server.do("EVAL", "for i = 1, 20000 do redis.call('SET', 'test:' .. i, string.rep('x', 100)) end return 1", "0")
	server.do("SAVE")
	server.kill()
	server.launch()
	said := new(told)
	options := Options{URL: server.url, Timeout: patient, Prefix: "test:", Name: "limits", OnError: Deny}
	eventually(t, func() error { // it listens
		if _, err := os.Stat(strings.TrimPrefix(server.url, "unix://")); err != nil {
			return err
		}
		if _, err := server.tryDo("PING"); err == nil || !strings.Contains(err.Error(), "LOADING") {
			return fmt.Errorf("%v, want LOADING", err)
		}
		return nil
	})
	said.listen(&options)
	store, err := New(options, bucket.NewMemory(10))
	must(t, err)
	t.Cleanup(store.Close)
	refuses(t, store, said, "LOADING Redis is loading the dataset in memory")
	_, _ = server.tryDo("CONFIG", "SET", "key-load-delay", "0")
	recovers(t, store, said, "LOADING")
}

// A user who may not ask how the slots of a cluster are shared out is sent to other nodes, where the client does not follow.
func TestMoved(t *testing.T) {
	t.Parallel()
	var nodes [2]*admin
	var addrs, busPorts [2]string
	for i := range nodes {
		addrs[i], busPorts[i] = freeAddr(t), portOf(freeAddr(t))
		nodes[i] = administer(t, startServer(t, "--port", portOf(addrs[i]), "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-port", busPorts[i]))
	}
	nodes[0].do("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	nodes[1].do("CLUSTER", "MEET", "127.0.0.1", portOf(addrs[0]), busPorts[0])
	for _, node := range nodes {
		node.up()
		node.do("ACL", "SETUSER", "gate", "-cluster")
	}
	store, said := denying(t, "redis://gate:secret@"+addrs[1])
	refuses(t, store, said, "MOVED")
	for _, node := range nodes {
		node.do("ACL", "SETUSER", "gate", "+cluster|slots", "+cluster|shards")
	}
	eventually(t, store.connected)
	recovers(t, store, said, "MOVED")
}

// What a server says when it closes a connection is why; what it has said before, to something else, is not.
func TestWhyAConnectionIsClosed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		says []string
		want string
	}{
		{[]string{"-DENIED Redis is running in protected mode\r\n"}, "DENIED Redis is running in protected mode"},
		{[]string{"-ERR max number of clients reached\r\n"}, "max number of clients reached"},
		{[]string{"+OK\r\n", "-NOSCRIPT No matching script\r\n"}, "EOF"},
		{[]string{"-NOSCRIPT No matching script\r\n", "+OK\r\n"}, "EOF"},
		{nil, "EOF"},
	} {
		server, client := net.Pipe()
		go func() {
			for _, text := range c.says {
				_, _ = server.Write([]byte(text))
			}
			server.Close()
		}()
		guarded, err := &conn{Conn: client}, error(nil)
		for b := make([]byte, 100); err == nil; {
			_, err = guarded.Read(b)
		}
		if err.Error() != c.want {
			t.Errorf("%q: got %v, want %s", c.says, err, c.want)
		}
	}
}

// leastRights returns the line of the manual that makes a user who may do what is needed, and nothing else.
func leastRights(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "ratelimit.md"))
	must(t, err)
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "ACL SETUSER ") {
			return strings.Fields(line)
		}
	}
	t.Fatal("the manual has no line ACL SETUSER")
	return nil
}

// The user of the manual can do all that is done, on one server and in a cluster of one node, also when the clock is set back; and with
// none of the rights less.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	line := leastRights(t)
	password := ""
	for _, word := range line {
		if rest, ok := strings.CutPrefix(word, ">"); ok {
			password = rest
		}
	}
	for name, args := range map[string][]string{"alone": nil, "cluster": {"--cluster-enabled", "yes", "--cluster-port", portOf(freeAddr(t))}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			a := administer(t, startServer(t, append(args, "--port", portOf(addr), "--bind", "127.0.0.1")...))
			if args != nil {
				a.do("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
				a.up()
			}
			a.do(line...)
			store := open(t, &server{url: fmt.Sprintf("redis://%s:%s@%s", line[2], password, addr)}, func(o *Options) { o.Prefix = "portgate:" })
			works(t, store)
			delayed, err := bucket.NewEvents(7, 1, time.Minute, 1, time.Minute)
			must(t, err)
			requests := text(delayed, "x")
			store.admitted(1, requests)
			if d := store.Decide(now(), requests); d.Delay == 0 || d.Failed {
				t.Fatalf("%+v, want it delayed", d)
			}
			given := make(chan int, 1)
			store.Cancel(now(), requests, func(kept []bucket.Request) { given <- len(kept) })
			if n := <-given; n != 0 {
				t.Error("a reservation could not be given back")
			}
			a.do("ZADD", store.nodesKey(), "99999999999999", "dead") // as after a step of the clock
			a.do("HSET", store.key(text(bucket.NewCount(2, 3), "z")[0].Key), "dead", "3:1")
			if d := store.Decide(now(), text(bucket.NewCount(2, 3), "z")); d.Failed || !d.Refused {
				t.Errorf("%+v, want it refused", d)
			}
			for _, key := range a.strings("KEYS", "*") {
				if !strings.HasPrefix(key, "portgate:") {
					t.Errorf("key %q", key)
				}
			}
			must(t, store.connected())
			if log := a.aclLog(); log != "" {
				t.Errorf("refused: %s", log)
			}
		})
	}
}

// aclLog returns what users were refused, but for what a client asks of every server.
func (a *admin) aclLog() (all string) {
	a.t.Helper()
	list, err := a.client.Do(context.Background(), a.client.B().Arbitrary("ACL", "LOG").Build()).ToArray()
	must(a.t, err)
	for _, each := range list {
		entry, err := each.AsStrMap()
		if err != nil {
			a.t.Fatal(err)
		}
		all += entry["reason"] + " " + entry["object"] + "\n"
	}
	return all
}
