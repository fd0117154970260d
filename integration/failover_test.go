package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// run starts the server on a port, without waiting for it.
func (c *cluster) run(t *testing.T, addr string, options ...string) *exec.Cmd {
	t.Helper()
	_, serverPort, _ := net.SplitHostPort(addr)
	args := []string{"-D", c.data, "-p", serverPort, "-k", c.dir, "-c", "fsync=off"}
	for _, option := range options {
		args = append(args, "-c", option)
	}
	cmd := c.command("postgres", args...)
	startProgram(t, cmd)
	return cmd
}

// ask asks the server on its unix socket.
func (c *cluster) ask(t *testing.T, addr, query string) (string, error) {
	_, serverPort, _ := net.SplitHostPort(addr)
	out, err := exec.Command(program(t, "psql"), "-h", c.dir, "-p", serverPort, "-U", "gate", "-d", "postgres", "-X", "-At", "-c", query).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// mustAnswer asks until the answer is the wanted one.
func (c *cluster) mustAnswer(t *testing.T, addr, query, want string) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		got, err := c.ask(t, addr, query)
		if err == nil && got != want {
			err = errors.New("not yet")
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %q, want %q", query, err, got, want)
		}
		return nil
	})
}

// transaction is one transaction of a client, with a connection of its own.
type transaction struct {
	id         int64
	began, end time.Time
	err        error
}

// transactions runs pgbench again and again until stopped: each time it inserts a row.
type transactions struct {
	addr, script string
	last, done   atomic.Int64
	stopped      atomic.Bool
	mu           sync.Mutex
	all          []transaction
	clients      sync.WaitGroup
}

func (x *transactions) begin(t *testing.T, clients int) {
	host, serverPort, _ := net.SplitHostPort(x.addr)
	for range clients {
		x.clients.Go(func() {
			for !x.stopped.Load() {
				one := transaction{id: x.last.Add(1), began: time.Now()}
				cmd := exec.Command(program(t, "pgbench"), "-n", "-c", "1", "-t", "1", "-D", fmt.Sprintf("id=%d", one.id), "-f", x.script,
					"-h", host, "-p", serverPort, "-U", "gate", "postgres")
				out, err := cmd.CombinedOutput()
				if err == nil && !strings.Contains(string(out), "actually processed: 1/1") {
					err = errors.New("not processed")
				}
				if one.end = time.Now(); err != nil {
					one.err = fmt.Errorf("%w: %s", err, out)
				} else {
					x.done.Add(1)
				}
				x.mu.Lock()
				x.all = append(x.all, one)
				x.mu.Unlock()
			}
		})
	}
}

// mustDo waits until n more transactions have succeeded.
func (x *transactions) mustDo(t *testing.T, n int64) {
	t.Helper()
	before := x.done.Load()
	gate.Eventually(t, peerTimeout, func() error {
		if got := x.done.Load() - before; got < n {
			return fmt.Errorf("%d transactions have succeeded", got)
		}
		return nil
	})
}

// The primary is killed and the standby takes over: no transaction fails but those that were in flight, and none that has succeeded is lost.
func TestPostgresFailover(t *testing.T) {
	primary, standby := newCluster(t), newCluster(t)
	first, second, addr := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	primary.init(t)
	killed := primary.run(t, first, "listen_addresses=127.0.0.1", "wal_level=replica", "synchronous_standby_names=*", "synchronous_commit=local")
	primary.mustAnswer(t, first, "select 1", "1")
	if _, err := primary.ask(t, first, "create table t (id int primary key)"); err != nil {
		t.Fatal(err)
	}
	_, firstPort, _ := net.SplitHostPort(first)
	output(t, standby.command("pg_basebackup", "-D", standby.data, "-R", "-N", "-c", "fast", "-h", primary.dir, "-p", firstPort, "-U", "gate"))
	// A standby accepts connections, and refuses to write: clients must not come to it before it is promoted. Nor to a server that starts: it opens its
	// port first, and then says that it is not ready. So the port by which they come is opened when it is promoted.
	hidden := gate.ReserveAddr(t)
	standby.run(t, hidden, "listen_addresses=127.0.0.1", "synchronous_standby_names=", "wal_retrieve_retry_interval=100ms") // it is promoted between two tries
	primary.mustAnswer(t, first, "select sync_state from pg_stat_replication", "sync")

	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(first).With("lb_try_duration", "10s").
		With("upstreams", []gate.JSON{upstreamWith(second, gate.JSON{"backup": true})}))))
	script := writeFile(t, "insert.sql", "set synchronous_commit = on;\ninsert into t values (:id);\n")
	x := &transactions{addr: addr, script: script}
	x.begin(t, 4)
	defer x.clients.Wait()
	defer x.stopped.Store(true)
	x.mustDo(t, 20)

	must(t, killed.Process.Signal(syscall.SIGQUIT)) // immediate shutdown, as after a crash: nothing is written, and no client is told
	gone := func() bool { return !listens(first) }
	gate.Eventually(t, peerTimeout, func() error {
		if !gone() {
			return errors.New("the primary is there still")
		}
		return nil
	})
	goneAt := time.Now()
	output(t, standby.command("pg_ctl", "promote", "-w", "-D", standby.data))
	standby.mustAnswer(t, hidden, "select pg_is_in_recovery()", "f")
	serveAt(t, second, func(conn *net.TCPConn) { passTo(conn, hidden) })
	x.mustDo(t, 20)
	took := time.Since(goneAt)
	x.stopped.Store(true)
	x.clients.Wait()

	var failed int
	longest := time.Duration(0)
	for _, one := range x.all {
		longest = max(longest, one.end.Sub(one.began))
		if one.err == nil {
			if got, err := standby.ask(t, hidden, fmt.Sprintf("select count(*) from t where id = %d", one.id)); err != nil || got != "1" {
				t.Errorf("transaction %d is lost: %q, %v", one.id, got, err)
			}
			continue
		}
		if failed++; one.began.After(goneAt) {
			t.Errorf("transaction %d began when the primary had gone, and failed after %v: %v", one.id, one.end.Sub(one.began), one.err)
		}
	}
	t.Logf("%d transactions, %d failed; the longest took %v, and 20 more after the failover %v", len(x.all), failed, longest, took)
	_ = p
}

// passTo is a port that leads to another one.
func passTo(client *net.TCPConn, addr string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, client)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(client, conn)
}

// listens reports whether somebody accepts connections.
func listens(addr string) bool {
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err == nil
}
