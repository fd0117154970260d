package redis

import (
	_ "embed" // for the script
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

//go:embed bucket.lua
var source string

// script is sent once to each server, and then called by its hash.
var script = rueidis.NewLuaScript(source)

const (
	decide  = "decide"
	publish = "publish"
	cancel  = "cancel"
)

// key names a bucket.
func (s *Store) key(k bucket.Key) string {
	return s.keyHead + strconv.Itoa(int(k.LimitID())) + ":" + k.String()
}

func (s *Store) nodesKey() string { return s.keyHead + "nodes" }

// keyHead begins all keys of a store: with the prefix, so that a Redis user can be restricted to such keys. The name in braces has them in
// one slot of a cluster, because a script can't reach further, and what it decides must be of one piece.
func (o *Options) keyHead() string { return o.Prefix + "{" + o.Name + "}:" }

// head is the beginning of the arguments.
func head(what, node string, extra int) []string {
	args := make([]string, 0, 4+extra)
	return append(args, what, node, milliseconds(leaseTime), milliseconds(countLife))
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// question returns what the script is asked. What it finds there is described in the script.
func (s *Store) question(requests []bucket.Request, held []holding) (keys, args []string) {
	keys = make([]string, 0, len(requests)+1)
	args = head(decide, s.counts.nodeName(), 4*len(requests))
	for i := range requests {
		keys = append(keys, s.key(requests[i].Key))
		limit := requests[i].Limit
		if limit.Kind() == bucket.Count {
			args = append(args, "count", number(limit.Max()), number(held[i].count), number(held[i].number))
			continue
		}
		interval, tolerance, maxDelay := limit.Times()
		args = append(args, "rate", number(int64(interval)), number(int64(tolerance)), number(int64(maxDelay)))
	}
	return append(keys, s.nodesKey()), args
}

// rehearsal returns what the script is asked to see whether it may do what a decision takes, and what it is told of it then. The
// first key expires at once, the second one is removed by the statement.
func (s *Store) rehearsal(node string) (decision, statement [2][]string) {
	rate, count := s.keyHead+"probe:rate", s.keyHead+"probe:count"
	decision[0] = []string{rate, count, s.nodesKey()}
	decision[1] = append(head(decide, node, 8), "rate", "1", number(int64(time.Second)), "0", "count", number(1<<31), "1", "1")
	statement[0] = []string{count, s.nodesKey()}
	statement[1] = append(head(publish, node, 2), "0", "2")
	return decision, statement
}

// statement returns what the script is told of what this node holds.
func (s *Store) statement(node string, news []item) (keys, args []string) {
	keys = make([]string, 0, len(news)+1)
	args = head(publish, node, 2*len(news))
	for _, n := range news {
		keys = append(keys, s.key(n.key))
		args = append(args, number(n.count), number(n.number))
	}
	return append(keys, s.nodesKey()), args
}

// withdrawal returns what the script is told of reservations that are given back.
func (s *Store) withdrawal(node string, requests []bucket.Request) (keys, args []string) {
	keys = make([]string, 0, len(requests)+1)
	args = head(cancel, node, 2*len(requests))
	for i := range requests {
		keys = append(keys, s.key(requests[i].Key))
		interval, _, _ := requests[i].Limit.Times()
		seconds, nanoseconds := requests[i].Reserved.Mark/int64(time.Second), requests[i].Reserved.Mark%int64(time.Second)
		args = append(args, number(int64(interval)), fmt.Sprintf("%d.%09d", seconds, nanoseconds))
	}
	return append(keys, s.nodesKey()), args
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
