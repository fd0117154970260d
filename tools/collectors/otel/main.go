// Command otel accepts the Forward protocol with the receiver of the OpenTelemetry collector, and writes each log record that it gets to
// stdout, as a JSON object in a line of its own:
//
//	otel <host:port>
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/fluentforwardreceiver"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

// record is what a line of stdout has of a log record.
type record struct {
	Time       string         `json:"time"` // RFC 3339
	Body       string         `json:"body"`
	Attributes map[string]any `json:"attributes"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: otel <host:port>")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	factory := fluentforwardreceiver.NewFactory()
	config := factory.CreateDefaultConfig().(*fluentforwardreceiver.Config)
	config.ListenAddress = os.Args[1]
	sink, err := consumer.NewLogs(write)
	if err != nil {
		return err
	}
	receiver, err := factory.CreateLogs(ctx, receivertest.NewNopSettings(factory.Type()), config, sink)
	if err != nil {
		return err
	}
	if err := receiver.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	<-ctx.Done()
	return receiver.Shutdown(context.Background())
}

// write has the records out before the receiver acknowledges them.
func write(_ context.Context, logs plog.Logs) error {
	lines := json.NewEncoder(os.Stdout)
	for _, resource := range logs.ResourceLogs().All() {
		for _, scope := range resource.ScopeLogs().All() {
			for _, r := range scope.LogRecords().All() {
				const layout = "2006-01-02T15:04:05.999999999Z07:00"
				err := lines.Encode(record{r.Timestamp().AsTime().Format(layout), r.Body().AsString(), r.Attributes().AsRaw()})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}
