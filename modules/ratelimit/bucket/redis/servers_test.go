package redis

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// works requires that the store decides with this server.
func works(t *testing.T, store *Store) {
	t.Helper()
	requests := append(text(hourly(t, 1, 5), "x"), text(bucket.NewCount(2, 3), "y")...)
	for i := range 4 {
		if d := store.Decide(now(), requests); d.Failed || d.Refused != (i == 3) {
			t.Fatalf("decision %d: %+v", i, d)
		}
	}
	for range 3 {
		store.Release(now(), requests)
	}
}

func TestTLSAndUsers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	host := startServer(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert,
		"--tls-auth-clients", "no", "--bind", "127.0.0.1")
	host.do("ACL", "SETUSER", "gate", "on", ">secret", "~test:*", "+@all")
	good := open(t, &server{url: "rediss://gate:secret@" + addr + "?skip_verify=true"})
	works(t, good)
	for _, url := range []string{
		"rediss://gate:secret@" + addr,                      // a certificate that nobody vouches for
		"rediss://gate:wrong@" + addr + "?skip_verify=true", // the wrong password
		"redis://gate:secret@" + addr,                       // no TLS
	} {
		store, err := New(Options{URL: url, Timeout: patient, Prefix: "test:", Name: "limits", OnError: Deny}, bucket.NewMemory(10))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.client.connect(); err == nil {
			t.Errorf("%s: connected", url)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error has the password: %v", err)
		}
		store.Close()
	}
}

func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs8)
}

// In a cluster, all keys of a store are in one slot.
func TestCluster(t *testing.T) {
	t.Parallel()
	var nodes [3]*server
	var ports, busPorts [3]string
	for i := range nodes {
		addr, bus := freeAddr(t), freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		_, busPort, _ := net.SplitHostPort(bus)
		nodes[i] = startServer(t, "--port", port, "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-port", busPort)
		ports[i], busPorts[i] = port, busPort
		nodes[i].do("CLUSTER", "ADDSLOTSRANGE", fmt.Sprint(i*5462), fmt.Sprint(min(i*5462+5461, 16383)))
		if i > 0 {
			nodes[i].do("CLUSTER", "MEET", "127.0.0.1", ports[0], busPorts[0])
		}
	}
	for _, node := range nodes {
		eventually(t, func() error {
			answer, err := node.tryDo("CLUSTER", "INFO")
			if err != nil {
				return err
			}
			info, err := answer.ToString()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:3")) {
				err = errNotYet
			}
			return err
		})
	}
	for _, name := range []string{"one", "two", "three", "four"} { // in different slots
		store := open(t, &server{url: "redis://127.0.0.1:" + ports[0] + "?addr=127.0.0.1:" + ports[1]}, func(o *Options) { o.Name = name })
		works(t, store)
	}
}

// When the sentinels make another server the master, decisions go there.
func TestSentinel(t *testing.T) {
	t.Parallel()
	masterAddr, replicaAddr, sentinelAddr := freeAddr(t), freeAddr(t), freeAddr(t)
	port := func(addr string) string {
		_, port, _ := net.SplitHostPort(addr)
		return port
	}
	master := startServer(t, "--port", port(masterAddr), "--bind", "127.0.0.1")
	replica := startServer(t, "--port", port(replicaAddr), "--bind", "127.0.0.1", "--replicaof", "127.0.0.1 "+port(masterAddr))
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "port %s\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 %s 1\n"+
		"sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n", port(sentinelAddr), port(masterAddr)), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := &server{t: t, args: []string{config, "--sentinel", "--logfile", config + ".log"}, url: "redis://" + sentinelAddr}
	sentinel.start()
	t.Cleanup(sentinel.kill)
	eventually(t, func() error { // the sentinel has found the replica
		answer, err := sentinel.tryDo("SENTINEL", "REPLICAS", "main")
		if err != nil {
			return err
		}
		if list, err := answer.ToArray(); err != nil || len(list) != 1 {
			return errNotYet
		}
		info, err := replica.tryDo("INFO", "replication")
		if err != nil {
			return err
		}
		if text, _ := info.ToString(); !strings.Contains(text, "master_link_status:up") {
			return errNotYet
		}
		return nil
	})
	store := open(t, &server{url: "redis://" + sentinelAddr + "?master_set=main"}, hurry)
	works(t, store)
	count := text(bucket.NewCount(2, 3), "held")
	store.admitted(2, count)
	master.kill()
	fails(t, store, text(hourly(t, 3, 1<<10), "z"))
	eventually(t, func() error { // the sentinel has made the replica the master
		answer := sentinel.do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
		if at, err := answer.AsStrSlice(); err != nil || at[1] != port(replicaAddr) {
			return errNotYet
		}
		return nil
	})
	failedOver := time.Now()
	eventually(t, store.connected)
	eventually(t, func() error { return replica.knows(store, count, 2) })
	if took := time.Since(failedOver); took > 5*time.Second+late {
		t.Errorf("found the new master after %v", took)
	}
	if n := store.admitted(3, count); n != 1 {
		t.Errorf("%d more at once with the new master, want 1", n)
	}
}
