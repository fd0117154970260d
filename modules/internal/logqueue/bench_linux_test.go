package logqueue

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// BenchmarkEntryToFile is what an entry of the access log costs from the session to the file, in all goroutines.
func BenchmarkEntryToFile(b *testing.B) {
	file, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	log := WrapAccess(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(file), zap.InfoLevel)), 1<<30).Named("log.access")
	client := netip.MustParseAddr("192.0.2.7")
	before := cpuTime(b)
	b.ReportAllocs()
	for b.Loop() {
		log.Info("session",
			zap.String("session_id", "c9b6233d00000001"), zap.String("network", "tcp"), zap.String("listener", "127.0.0.1:8080"), zap.Stringer("client_ip", client),
			zap.Uint16("client_port", 51228), zap.String("upstream", "127.0.0.1:9001"), zap.Int64("bytes_up", 78), zap.Int64("bytes_down", 137),
			zap.Duration("duration", 1900*time.Microsecond), zap.Duration("connect_duration", 200*time.Microsecond), zap.Int("status", 200), zap.String("reason", "client_fin"))
	}
	Flush(time.Minute)
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
