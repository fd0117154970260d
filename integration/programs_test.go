package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// program finds a program of the system. `make test` installs them all.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} { // not everybody has them in PATH
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		t.Fatalf("%v: this test needs the program; `make test` installs it", err)
	}
	return path
}

// startProgram runs a program until the test is over. Before that it must not end: alive fails the test where it has.
func startProgram(t testing.TB, cmd *exec.Cmd) (alive func()) {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	must(t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), output.String())
		}
	})
	return func() {
		t.Helper()
		select {
		case <-exited:
			t.Fatalf("%s ended while starting: %v\n%s", filepath.Base(cmd.Path), cmd.ProcessState, output.String())
		default:
		}
	}
}

// server runs a real server until the test is over, and waits until it accepts on addr.
func server(t testing.TB, addr string, cmd *exec.Cmd) {
	t.Helper()
	alive := startProgram(t, cmd)
	gate.Eventually(t, 30*time.Second, func() error {
		alive()
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// iperfServer runs an iperf3 server until the test is over. It is not tried out by a connection: a client that comes while the server still has that
// one is reset, as iperf3 is, with and without a gateway between.
func iperfServer(t testing.TB) (addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	alive := startProgram(t, exec.Command(program(t, "iperf3"), "-s", "-B", "127.0.0.1", "-p", port))
	number, _ := strconv.Atoi(port)
	listens := fmt.Sprintf(":%04X 00000000:0000 0A ", number) // proc(5): local address, remote address, state
	gate.Eventually(t, 30*time.Second, func() error {
		alive()
		sockets, err := os.ReadFile("/proc/net/tcp")
		if err == nil && !bytes.Contains(sockets, []byte(listens)) {
			err = errors.New("iperf3 does not listen yet")
		}
		return err
	})
	return addr
}

// isBusy reports whether the server has told an iperf3 client to come again, which it sometimes does with the exit code of success.
func isBusy(report []byte) bool { return bytes.Contains(report, []byte("the server is busy")) }

// output runs a client that must succeed, and returns what it wrote.
func output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	must(t, cmd.Start())
	expired := time.AfterFunc(peerTimeout, func() { cmd.Process.Kill() })
	defer expired.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", strings.Join(cmd.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// throughGate starts a process that forwards to the server, and returns the host and the port to give to a client.
func throughGate(t testing.TB, upstream string) (p *gate.Process, host, port string) {
	t.Helper()
	addr := gate.ReserveAddr(t)
	p = gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(upstream))))
	host, port, _ = net.SplitHostPort(addr)
	return p, host, port
}

// startSSHD runs an sshd with keys of its own that lets the current user in, and returns its address and the client's options.
func startSSHD(t *testing.T) (addr string, options func(port string) []string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	return addr, startSSHDAt(t, addr)
}

func startSSHDAt(t *testing.T, addr string) (options func(port string) []string) {
	t.Helper()
	must(t, os.MkdirAll("/run/sshd", 0o755)) // sshd refuses to run as root without
	dir := t.TempDir()
	hostKey, userKey := filepath.Join(dir, "host"), filepath.Join(dir, "user")
	for _, key := range []string{hostKey, userKey} {
		run(t, program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key)
	}
	_, serverPort, _ := net.SplitHostPort(addr)
	config := fmt.Sprintf(`ListenAddress 127.0.0.1
Port %s
HostKey %s
AuthorizedKeysFile %s.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
Subsystem sftp internal-sftp
`, serverPort, hostKey, userKey)
	server(t, addr, exec.Command(program(t, "sshd"), "-D", "-e", "-f", writeFile(t, "sshd_config", config)))

	public, err := os.ReadFile(hostKey + ".pub")
	must(t, err)
	return func(port string) []string {
		known := writeFile(t, "known_hosts", fmt.Sprintf("[127.0.0.1]:%s %s", port, public))
		return []string{
			"-F", "none", "-i", userKey, "-o", "Port=" + port, "-o", "UserKnownHostsFile=" + known,
			"-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		}
	}
}

func TestProgramsSSHAndSFTP(t *testing.T) {
	t.Parallel()
	addr, options := startSSHD(t)
	_, host, port := throughGate(t, addr)
	current, err := user.Current()
	must(t, err)
	login := current.Username + "@" + host

	var content bytes.Buffer
	_, err = send(&content, 16*mib)
	must(t, err)
	cat := exec.Command(program(t, "ssh"), append(options(port), login, "cat; echo over; exit 7")...)
	cat.Stdin = bytes.NewReader(content.Bytes())
	var stdout bytes.Buffer
	cat.Stdout = &stdout
	if err := cat.Run(); cat.ProcessState.ExitCode() != 7 || stdout.String() != content.String()+"over\n" {
		t.Errorf("ssh: %v, %d bytes of output, want exit code 7 and %d bytes", err, stdout.Len(), content.Len()+len("over\n"))
	}

	dir := t.TempDir()
	put, got := filepath.Join(dir, "put"), filepath.Join(dir, "got")
	must(t, os.WriteFile(put, content.Bytes(), 0o600))
	remote := filepath.Join(dir, "remote")
	sftp := exec.Command(program(t, "sftp"), append(options(port), "-b", "-", login)...)
	sftp.Stdin = strings.NewReader(fmt.Sprintf("put %s %s\nget %s %s\n", put, remote, remote, got))
	output(t, sftp)
	if back, err := os.ReadFile(got); err != nil || !bytes.Equal(back, content.Bytes()) {
		t.Errorf("sftp: %d bytes came back (%v), want the %d that went", len(back), err, content.Len())
	}
}

func TestProgramsRedis(t *testing.T) {
	addr := gate.ReserveAddr(t)
	_, serverPort, _ := net.SplitHostPort(addr)
	redis := exec.Command(program(t, "redis-server"), "--bind", "127.0.0.1", "--port", serverPort, "--save", "", "--appendonly", "no")
	redis.Dir = t.TempDir()
	server(t, addr, redis)
	p, host, port := throughGate(t, addr)

	const clients = 50
	for _, pipelined := range []string{"1", "16"} {
		csv := output(t, exec.Command(program(t, "redis-benchmark"), "-h", host, "-p", port,
			"-c", strconv.Itoa(clients), "-n", "20000", "-P", pipelined, "-d", "64", "-t", "ping,set,get,lrange_100", "--csv"))
		if lines := strings.Count(csv, "\n"); lines < 6 || strings.Contains(csv, "rror") {
			t.Errorf("redis-benchmark:\n%s", csv)
		}
	}
	cli := func(args ...string) string {
		return strings.TrimSpace(output(t, exec.Command(program(t, "redis-cli"), append([]string{"-h", host, "-p", port}, args...)...)))
	}
	big := strings.Repeat("0123456789", mib/10)
	cli("set", "big", big[:100_000])
	if got := cli("get", "big"); got != big[:100_000] {
		t.Errorf("redis-cli: got %d bytes back, want %d", len(got), 100_000)
	}
	for _, s := range p.WaitSessions(clients, nil) {
		if s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

// startPostgres makes a cluster as a user who is not root, which PostgreSQL insists on, and starts it.
func startPostgres(t *testing.T) (addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	startPostgresAt(t, addr)
	return addr
}

func startPostgresAt(t *testing.T, addr string) {
	t.Helper()
	c := newCluster(t)
	c.init(t)
	_, serverPort, _ := net.SplitHostPort(addr)
	// SIGTERM is PostgreSQL's smart shutdown, which would wait for clients; by then there are none.
	server(t, addr, c.command("postgres", "-D", c.data, "-p", serverPort, "-k", c.dir, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"))
}

// cluster is the data of a PostgreSQL server, and a folder for its socket.
type cluster struct {
	bin, dir, data string
	as             *syscall.Credential // nil: the user that runs the test
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Fatal("no /usr/lib/postgresql/*/bin/initdb: this test needs PostgreSQL; `make test` installs it")
	}
	dir, err := os.MkdirTemp("", "gate-") // not below t.TempDir, which only root may enter
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{bin: filepath.Dir(found[len(found)-1]), dir: dir, data: filepath.Join(dir, "data")}
	if os.Geteuid() == 0 {
		postgres, err := user.Lookup("postgres")
		must(t, err)
		uid, _ := strconv.Atoi(postgres.Uid)
		gid, _ := strconv.Atoi(postgres.Gid)
		must(t, os.Chown(dir, uid, gid))
		c.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return c
}

// command runs a program of PostgreSQL as the user that owns the data.
func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = c.dir, &syscall.SysProcAttr{Credential: c.as}
	return cmd
}

func (c *cluster) init(t *testing.T) {
	t.Helper()
	output(t, c.command("initdb", "-D", c.data, "-U", "gate", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"))
}

func TestProgramsPostgres(t *testing.T) {
	addr := startPostgres(t)
	_, host, port := throughGate(t, addr)
	at := []string{"-h", host, "-p", port, "-U", "gate"}
	psql := func(query string) string {
		return strings.TrimSpace(output(t, exec.Command(program(t, "psql"), append(at, "-d", "postgres", "-X", "-At", "-c", query)...)))
	}
	gate.Eventually(t, 30*time.Second, func() error { // the server accepts connections before it takes queries
		return exec.Command(program(t, "pg_isready"), append(at, "-t", "1")...).Run()
	})
	if sum := psql("select sum(n), md5(string_agg(n::text, ',')) from generate_series(1, 100000) n"); !strings.HasPrefix(sum, "5000050000|") {
		t.Errorf("psql: %q", sum)
	}
	const rows = 200_000
	lines := strings.Count(psql(fmt.Sprintf("select n, repeat('x', 100) from generate_series(1, %d) n", rows)), "\n") + 1
	if lines != rows {
		t.Errorf("psql: %d rows of a large result, want %d", lines, rows)
	}

	output(t, exec.Command(program(t, "pgbench"), append(at, "-i", "-q", "-s", "1", "postgres")...))
	for _, mode := range [][]string{{"-c", "8"}, {"-c", "4", "-C"}} { // -C: a connection for each transaction
		report := output(t, exec.Command(program(t, "pgbench"), append(append(at, mode...), "-j", "2", "-T", "2", "-n", "postgres")...))
		failed := regexp.MustCompile(`number of failed transactions: (\d+)`).FindStringSubmatch(report)
		if failed == nil || failed[1] != "0" {
			t.Errorf("pgbench %v:\n%s", mode, report)
		}
	}
}

func TestProgramsWrkAgainstNginx(t *testing.T) {
	dir := t.TempDir()
	addr := gate.ReserveAddr(t)
	page := strings.Repeat("x", 1000)
	must(t, os.WriteFile(filepath.Join(dir, "index.html"), []byte(page), 0o644))
	must(t, os.Chmod(dir, 0o755))
	config := writeFile(t, "nginx.conf", fmt.Sprintf(`daemon off;
master_process off;
pid %[1]s/pid;
error_log stderr;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server { listen %[2]s; root %[1]s; }
}
`, dir, addr))
	server(t, addr, exec.Command(program(t, "nginx"), "-e", "stderr", "-p", dir, "-c", config))
	p, host, port := throughGate(t, addr)
	url := "http://" + net.JoinHostPort(host, port) + "/"
	if got := mustGetPage(t, net.JoinHostPort(host, port)); got != page {
		t.Errorf("a GET got %d bytes, want %d", len(got), len(page))
	}
	for _, header := range []string{"X-Keep: alive", "Connection: close"} {
		report := output(t, exec.Command(program(t, "wrk"), "-t", "2", "-c", "64", "-d", "2s", "-H", header, url))
		if !strings.Contains(report, "requests in") || strings.Contains(report, "Socket errors") || strings.Contains(report, "Non-2xx") {
			t.Errorf("wrk with %q:\n%s", header, report)
		}
		t.Logf("wrk with %q: %s", header, regexp.MustCompile(`Requests/sec: .*`).FindString(report))
	}
	for _, s := range p.WaitSessions(64, nil) {
		if s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

func TestProgramsIperf3(t *testing.T) {
	iperf := program(t, "iperf3")
	addr := iperfServer(t)
	_, host, port := throughGate(t, addr)
	// Not --bidir: it tells its two connections apart by the order in which they arrive, which no proxy promises.
	for name, direction := range map[string][]string{"up": nil, "down": {"-R"}, "4 streams up": {"-P", "4"}, "4 streams down": {"-R", "-P", "4"}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), peerTimeout)
			defer cancel()
			args := append([]string{"-c", host, "-p", port, "-t", "1", "-J"}, direction...)
			// The server, busy with the test before, says so: then the client comes again.
			var out []byte
			gate.Eventually(t, peerTimeout, func() (err error) {
				if out, err = exec.CommandContext(ctx, iperf, args...).Output(); isBusy(out) {
					return errors.New("the server is busy")
				}
				if err != nil {
					t.Fatalf("iperf3: %v\n%s", err, out)
				}
				return nil
			})
			var report struct {
				End map[string]json.RawMessage
			}
			must(t, json.Unmarshal(out, &report))
			for _, sum := range []string{"sum_sent", "sum_received"} {
				var got struct {
					Bytes         int64
					BitsPerSecond float64 `json:"bits_per_second"`
				}
				must(t, json.Unmarshal(report.End[sum], &got))
				if got.Bytes < mib {
					t.Errorf("%s: %d bytes\n%s", sum, got.Bytes, out)
				}
				t.Logf("%s: %.1f Gbit/s", sum, got.BitsPerSecond/1e9)
			}
		})
	}
}
