package redis

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

const concurrency = 64

// 64 clients that each decide again and again.
func BenchmarkDecide(b *testing.B) {
	store := open(b, startServer(b))
	limit := hourly(b, 1, 1<<10)
	run(b, func(i int) error {
		if d := store.Decide(now(), text(limit, fmt.Sprint(i%100_000))); d.Failed {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
}

// The same script, with a connection for each decision that is under way, as clients without pipelining have it.
func BenchmarkPlainEvalsha(b *testing.B) {
	server := startServer(b)
	store := open(b, server)
	options, err := Parse(server.url)
	if err != nil {
		b.Fatal(err)
	}
	options.DisableAutoPipelining, options.AlwaysPipelining, options.BlockingPoolSize = true, false, concurrency
	client, err := rueidis.NewClient(options)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	limit := hourly(b, 1, 1<<10)
	run(b, func(i int) error {
		keys, args := store.question(text(limit, fmt.Sprint(i%100_000)), nil)
		_, err := script.Exec(context.Background(), client, keys, args).AsIntSlice()
		return err
	})
}

// run reports how many are done in a second, and how long 99 of 100 take at most.
func run(b *testing.B, decide func(i int) error) {
	var next atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var clients sync.WaitGroup
	b.ResetTimer()
	for range concurrency {
		clients.Go(func() {
			var took []time.Duration
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				start := time.Now()
				if err := decide(int(i)); err != nil {
					b.Error(err)
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
		})
	}
	clients.Wait()
	b.StopTimer()
	slices.Sort(all)
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "decisions/s")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
}

// A decision while the breaker is open.
func BenchmarkBreakerOpen(b *testing.B) {
	store, err := New(Options{URL: "unix:///nonexistent", Timeout: hurried, Prefix: "x", Name: "limits", OnError: Local}, bucket.NewMemory(1000))
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	requests := text(hourly(b, 1, 1<<10), "x")
	for b.Loop() {
		store.Decide(now(), requests)
	}
}
