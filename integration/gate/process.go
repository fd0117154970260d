package gate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// startTimeout bounds the start of a race binary on a busy machine with two cores, and everything else that takes no time on an idle one.
	startTimeout = 3 * time.Minute
	// stopTimeout is longer than forward's default grace_period, so that a test which left a busy session behind still ends cleanly.
	stopTimeout = 3 * time.Minute
)

// Process is a running binary.
type Process struct {
	tb     testing.TB
	cmd    *exec.Cmd
	dir    string
	admin  string // path of the admin endpoint's unix socket, or the address that the config gives it
	tcp    bool   // it is an address
	output *os.File
	log    logReader
	exited chan struct{} // closed after err is set
	err    error
	stop   sync.Once
}

type options struct {
	flavour Flavour
	files   int               // nofile limit, soft and hard; 0: inherited
	mounts  map[string]string // files that the process sees in place of the system's, by the path of these
	env     map[string]string // on top of a small clean environment
	sockets []*os.File        // inherited as descriptors from 3 on
	stdout  *os.File          // nil: the output that the tests read
	disks   map[string]string // file systems in memory that the process alone sees, by where they are; their sizes as mount(8) takes them
	netns   string            // the network namespace that the process is in; empty: the tests' own
}

// Option changes how a process is started.
type Option func(*options)

// WithoutRace starts the plain binary.
func WithoutRace() Option { return func(o *options) { o.flavour = Plain } }

// WithFiles limits the open files of the process.
func WithFiles(n int) Option { return func(o *options) { o.files = n } }

// WithEnv sets an environment variable.
func WithEnv(name, value string) Option { return func(o *options) { o.env[name] = value } }

// WithSockets has the process inherit sockets as descriptors from 3 on, as a service manager passes them on.
func WithSockets(sockets ...*os.File) Option { return func(o *options) { o.sockets = sockets } }

// WithStdout has the process write its stdout there. The test keeps the file.
func WithStdout(file *os.File) Option { return func(o *options) { o.stdout = file } }

// WithHosts shows the process another /etc/hosts, in a mount namespace of its own. The file may be rewritten (in place) later.
func WithHosts(path string) Option { return func(o *options) { o.mounts["/etc/hosts"] = path } }

// WithResolver is WithHosts for /etc/resolv.conf.
func WithResolver(path string) Option {
	return func(o *options) { o.mounts["/etc/resolv.conf"] = path }
}

// WithDisk has the process see a file system of that size, such as 64k, in place of a folder. See [Process.ReadFile].
func WithDisk(folder, size string) Option { return func(o *options) { o.disks[folder] = size } }

// WithNamespace starts the process in a network namespace, by its name.
func WithNamespace(name string) Option { return func(o *options) { o.netns = name } }

// Start runs the config and waits until the admin endpoint shows it.
func Start(tb testing.TB, config JSON, opts ...Option) *Process {
	tb.Helper()
	p := newProcess(tb)
	path := filepath.Join(p.dir, "config.json")
	if err := os.WriteFile(path, p.encode(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	p.launch(opts, "run", "--config", path)
	p.waitUntilReady()
	return p
}

// Launch runs the binary with these arguments and waits for nothing.
func Launch(tb testing.TB, opts []Option, args ...string) *Process {
	tb.Helper()
	p := newProcess(tb)
	p.launch(opts, args...)
	return p
}

func newProcess(tb testing.TB) *Process {
	tb.Helper()
	// Not tb.TempDir: the path of a unix socket may have no more than 107 bytes, and a test's name may be longer.
	dir, err := os.MkdirTemp("", "gate-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return &Process{tb: tb, dir: dir, admin: filepath.Join(dir, "admin.sock"), exited: make(chan struct{})}
}

// encode adds the admin endpoint that the tests use to a config. One that has an endpoint with a TCP address keeps it.
func (p *Process) encode(config JSON) []byte {
	p.tb.Helper()
	admin := JSON{"listen": "unix/" + p.admin}
	if given, is := config["admin"].(JSON); is {
		admin, p.admin, p.tcp = given, given["listen"].(string), true
	}
	data, err := json.Marshal(config.With("admin", admin.With("config", JSON{"persist": false})))
	if err != nil {
		p.tb.Fatal(err)
	}
	return data
}

func (p *Process) launch(opts []Option, args ...string) {
	p.tb.Helper()
	o := p.defaults()
	for _, opt := range opts {
		opt(&o)
	}
	output, err := os.OpenFile(filepath.Join(p.dir, "output"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		p.tb.Fatal(err)
	}
	p.output = output
	p.log.path = output.Name()
	p.cmd = o.command(Binary(p.tb, o.flavour), args)
	p.cmd.Dir = p.dir
	p.cmd.Stdout, p.cmd.Stderr = output, output
	if o.stdout != nil {
		p.cmd.Stdout = o.stdout
	}
	if err := p.cmd.Start(); err != nil {
		p.tb.Fatalf("starting %v: %v", p.cmd.Args, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	p.tb.Cleanup(p.Stop)
}

func (p *Process) defaults() options {
	return options{
		mounts: make(map[string]string),
		disks:  make(map[string]string),
		env:    map[string]string{"PATH": os.Getenv("PATH"), "HOME": p.dir, "XDG_DATA_HOME": p.dir, "XDG_CONFIG_HOME": p.dir},
	}
}

// command is the binary itself, or a shell that sets what os/exec can't and then becomes the binary, so that the pid stays.
func (o *options) command(binary string, args []string) *exec.Cmd {
	var prepare []string
	if o.files > 0 {
		prepare = append(prepare, fmt.Sprintf("ulimit -n %d", o.files))
	}
	for target, path := range o.mounts {
		prepare = append(prepare, fmt.Sprintf("mount --bind '%s' %s", path, target))
	}
	for folder, size := range o.disks {
		prepare = append(prepare, fmt.Sprintf("mount -t tmpfs -o size=%s tmpfs '%s'", size, folder))
	}
	cmd := exec.Command(binary, args...)
	if o.netns != "" { // ip execs the program, so the pid stays
		args = append([]string{"netns", "exec", o.netns, binary}, args...)
		binary = "ip"
		cmd = exec.Command(binary, args...)
	}
	if len(prepare) > 0 {
		script := strings.Join(append(prepare, `exec "$0" "$@"`), " && ")
		cmd = exec.Command("sh", append([]string{"-c", script, binary}, args...)...)
	}
	cmd.ExtraFiles = o.sockets
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if len(o.mounts)+len(o.disks) > 0 {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // Go makes / private in it, so the mount stays inside
	}
	for name, value := range o.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

func (p *Process) waitUntilReady() {
	p.tb.Helper()
	Eventually(p.tb, startTimeout, func() error {
		select {
		case <-p.exited:
			p.tb.Fatalf("the process ended while starting: %v\n%s", p.err, p.Output())
		default:
		}
		running, err := p.Get("/config/")
		if err == nil && strings.TrimSpace(running) == "null" {
			err = errors.New("no config is running")
		}
		return err
	})
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Admin returns the admin endpoint's address as Caddy's commands take it.
func (p *Process) Admin() string {
	if p.tcp {
		return p.admin
	}
	return "unix/" + p.admin
}

// ReadFile reads a file as the process sees it.
func (p *Process) ReadFile(path string) ([]byte, error) {
	return os.ReadFile(fmt.Sprintf("/proc/%d/root%s", p.PID(), path))
}

// Output returns everything that the process has written to stdout and stderr.
func (p *Process) Output() string {
	data, err := os.ReadFile(p.output.Name())
	if err != nil {
		p.tb.Error(err)
	}
	return string(data)
}

// Terminate sends SIGTERM and does not wait.
func (p *Process) Terminate() {
	p.tb.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.tb.Errorf("SIGTERM: %v", err)
	}
}

// Wait returns the exit code of a process that must end within timeout.
func (p *Process) Wait(timeout time.Duration) int {
	p.tb.Helper()
	select {
	case <-p.exited:
	case <-time.After(timeout):
		p.abort()
		p.tb.Fatalf("the process is still running after %v\n%s", timeout, tail(p.Output(), 200))
	}
	return p.cmd.ProcessState.ExitCode()
}

// abort ends a process that hangs, and has its goroutines' stacks written into the output.
func (p *Process) abort() {
	p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.exited
	}
}

// Stop ends the process as a service manager does and checks that it left cleanly. Every test ends with it.
func (p *Process) Stop() {
	p.tb.Helper()
	p.stop.Do(func() {
		defer p.output.Close()
		select {
		case <-p.exited:
		default:
			p.Terminate()
			if code := p.Wait(stopTimeout); code != 0 {
				p.tb.Errorf("exit code %d after SIGTERM", code)
			}
		}
		p.checkOutput()
	})
}

// checkOutput fails the test for a data race or a panic, and shows the log's end for any failed test.
func (p *Process) checkOutput() {
	p.tb.Helper()
	output := p.Output()
	for _, sign := range []string{"WARNING: DATA RACE", "panic:", "panic serving", "fatal error:"} {
		if at := strings.Index(output, sign); at >= 0 {
			p.tb.Errorf("the process reported %q:\n%s", sign, head(output[at:], 80))
		}
	}
	if p.tb.Failed() {
		log, access := splitLog(output)
		p.tb.Logf("end of the process's output:\n%s\nend of its access log:\n%s", tail(log, 20), tail(access, 5))
	}
}

// Run runs the binary to its end and returns its stdout, its stderr and its exit code.
func Run(tb testing.TB, flavour Flavour, args ...string) (stdout, stderr string, code int) {
	tb.Helper()
	p := newProcess(tb)
	o := p.defaults()
	cmd := o.command(Binary(tb, flavour), args)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting %v: %v", cmd.Args, err)
	}
	expired := time.AfterFunc(startTimeout, func() { cmd.Process.Kill() })
	defer expired.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		tb.Fatalf("%v: %v", cmd.Args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// splitLog parts the access log from the other output, and leaves out the tests' own requests.
func splitLog(output string) (log, access string) {
	var logLines, accessLines strings.Builder
	for line := range strings.Lines(output) {
		switch {
		case strings.Contains(line, accessLogger):
			accessLines.WriteString(line)
		case !strings.Contains(line, `"logger":"admin.api","msg":"received request"`):
			logLines.WriteString(line)
		}
	}
	return logLines.String(), accessLines.String()
}

func head(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[:min(lines, len(all))], "\n")
}

func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
