package integration

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A log file on a full disk holds up nobody, and the entries that it has no room for are counted exactly.
func TestALogFileOnAFullDisk(t *testing.T) {
	t.Parallel()
	addr, disk := gate.ReserveAddr(t), t.TempDir()
	file := filepath.Join(disk, "sessions.log")
	config := accessLogTo(denying(addr, serve(t, echo)), gate.JSON{"output": "file", "filename": file, "roll": false})
	p := gate.Start(t, config, gate.WithDisk(disk, "16k"), gate.WithoutRace())
	const rounds, each = 4, 20
	for range rounds {
		for range each {
			must(t, bothKinds(addr))
		}
		p.Load(config)
	}
	gate.Eventually(t, time.Minute, func() error {
		written, err := p.ReadFile(file)
		must(t, err)
		lines := bytes.Count(written, []byte("\n"))
		if lines == 0 || lines > rounds*each {
			t.Fatalf("%d lines are on the disk: the test is broken", lines)
		}
		m := p.Metrics()
		return errors.Join(
			equal(m, "caddy_portgate_sessions_total", 2*rounds*each),
			equal(m, "caddy_portgate_access_log_dropped_total", 2*rounds*each-lines),
		)
	})
	if !strings.Contains(p.Output(), "a log can't be written, its entries are lost") || !strings.Contains(p.Output(), "no space left on device") {
		t.Error("the log does not say it")
	}
	mustEndSoon(t, p)
}

// resettingCollector accepts connections, reads something and resets them.
func resettingCollector(t testing.TB) string {
	t.Helper()
	return serve(t, func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 10))
		must(t, conn.SetLinger(0))
	})
}

// awayCollector is an address where nobody listens.
func awayCollector(t testing.TB) string { return gate.ReserveAddr(t) }

// A collector that accepts and never reads, one that resets and one that is away: connections, denials, reloads and the end of the process go on as
// without a log, and each entry is counted as waiting or as lost.
func TestCollectorsThatTakeNothing(t *testing.T) {
	t.Parallel()
	writers := map[string]func(collector string) gate.JSON{
		"fluent": func(collector string) gate.JSON { return gate.JSON{"output": "fluent", "address": collector} },
		"elasticsearch": func(collector string) gate.JSON {
			return gate.JSON{"output": "elasticsearch", "url": "http://" + collector}
		},
	}
	for name, collector := range map[string]func(testing.TB) string{"never reads": stalledCollector, "resets": resettingCollector, "away": awayCollector} {
		for kind, writerTo := range writers {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				writer := writerTo(collector(t))
				takesNothing(t, writer.With("flush_interval", "1ms").With("timeout", "500ms"))
			})
		}
	}
}

func takesNothing(t *testing.T, writer gate.JSON) {
	t.Helper()
	const queue, rounds, each = 50, 4, 20
	addr := gate.ReserveAddr(t)
	config := accessLogTo(denying(addr, serve(t, echo)), writer.With("queue", queue))
	p := gate.Start(t, config)
	baseline := 0
	for round := range rounds {
		for range each {
			must(t, bothKinds(addr))
		}
		start := time.Now()
		p.Load(config)
		if took := time.Since(start); took > 10*time.Second+tolerance {
			t.Errorf("a reload took %v", took)
		}
		if round == 0 {
			baseline = p.Goroutines()
		}
	}
	const entries = 2 * rounds * each
	gate.Eventually(t, time.Minute, func() error {
		m := p.Metrics()
		return errors.Join(
			equal(m, "caddy_portgate_sessions_total", entries),
			equal(m, "caddy_portgate_log_writer_sent_total", 0),
			equal(m, "caddy_portgate_log_writer_waiting", queue),
			equal(m, "caddy_portgate_log_writer_dropped_total", entries-queue),
			equal(m, "caddy_portgate_log_writer_dropped_total", entries-queue, label("reason", "queue_full")),
			equal(m, "caddy_portgate_access_log_dropped_total", 0),
			equal(m, "caddy_portgate_degraded", 1, label("what", "log_writer")),
		)
	})
	for _, said := range []string{"log entries can't be sent, they wait", "the queue is full and further ones are dropped"} {
		if !strings.Contains(p.Output(), said) {
			t.Errorf("the log does not say: %s", said)
		}
	}
	// One that a reload replaces is done with what it has in time, and what is left is counted.
	p.Load(accessLogTo(denying(addr, serve(t, echo)), writer.With("queue", queue+1)))
	gate.Eventually(t, time.Minute, func() error {
		m := p.Metrics()
		return errors.Join(
			equal(m, "caddy_portgate_log_writer_dropped_total", queue, label("reason", "stopped")),
			equal(m, "caddy_portgate_log_writer_waiting", 0),
		)
	})
	gate.Eventually(t, time.Minute, func() error {
		if n := p.Goroutines(); n > baseline+10 {
			return fmt.Errorf("%d goroutines, there were %d", n, baseline)
		}
		return nil
	})
	must(t, bothKinds(addr))
	mustEndSoon(t, p)
}
