package relay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// pair is a kind of client and a kind of upstream, and with them one of the engines. Every test of
// the contract runs over all of them.
type pair struct {
	name string

	// accept makes a connection of a client: the relay's end of it, and the test's.
	accept func(testing.TB) (ours net.Conn, theirs stream)

	// listen opens the upstream's address.
	listen func(testing.TB) net.Listener

	// configure is what such an upstream needs of the relay. It may be nil.
	configure func(*Config)

	loop    bool // the event loops serve it
	spliced bool // between two sockets that the relay gets at
	unix    bool // the upstream is a unix socket, which knows no reset
}

// stream is a test's end of a connection.
type stream interface {
	net.Conn
	CloseWrite() error
}

var goroutinePairs = []pair{
	{name: "goroutines/tcp", accept: acceptTCP, listen: listenTCP, spliced: true},
	{name: "goroutines/unix", accept: acceptTCP, listen: listenUnix, spliced: true, unix: true},
	{name: "goroutines/wrapped", accept: acceptWrapped, listen: listenTCP},
	{name: "goroutines/tls", accept: acceptTLS, listen: listenTCP},
	{name: "goroutines/undetachable", accept: acceptUndetachable, listen: listenTCP, spliced: true},
	{name: "goroutines/upstream tls", accept: acceptTCP, listen: listenTLS, configure: overTLS},
	{name: "goroutines/both tls", accept: acceptTLS, listen: listenTLS, configure: overTLS},
}

var pairs = slices.Concat(goroutinePairs, loopPairs)

// plainPairs are those whose upstreams are connected as soon as the system says so.
var plainPairs = slices.DeleteFunc(slices.Clone(pairs), func(p pair) bool { return p.configure != nil })

// engines are the pairs for what has nothing to do with the kind of connection.
var engines = append([]pair{goroutinePairs[0]}, loopPairs[:min(1, len(loopPairs))]...)

// overPairs runs a test over all pairs at once.
func overPairs(t *testing.T, test func(*testing.T, pair)) { over(t, pairs, test) }

func over(t *testing.T, pairs []pair, test func(*testing.T, pair)) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func listenUnix(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func acceptTCP(t testing.TB) (net.Conn, stream) {
	t.Helper()
	ln := listenTCP(t)
	defer ln.Close()
	theirs, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs.(stream)
}

// acceptWrapped hides the socket, as most wrappers do.
func acceptWrapped(t testing.TB) (net.Conn, stream) {
	t.Helper()
	ours, theirs := acceptTCP(t)
	return struct{ net.Conn }{ours}, theirs
}

// undetachable offers to be detached, and then can't be.
type undetachable struct{ *net.TCPConn }

func (undetachable) Detach() (fd int, ok bool) { return -1, false }

func acceptUndetachable(t testing.TB) (net.Conn, stream) {
	t.Helper()
	ours, theirs := acceptTCP(t)
	return undetachable{ours.(*net.TCPConn)}, theirs
}

func acceptTLS(t testing.TB) (net.Conn, stream) {
	t.Helper()
	ours, theirs := acceptTCP(t)
	server := tls.Server(ours, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	client := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error)
	go func() { shaken <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	return server, client
}

// certificate is the test's own, which nobody checks.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})
