package forward

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/filewatch"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

const (
	// lookEvery is how often files are looked at, at most: the first handshake after that does it, before it begins.
	lookEvery = time.Second
	// maxCertificates is how large a file may be: all authorities of a system take a quarter of a megabyte.
	maxCertificates = 16 << 20
)

// identityFiles are the files that one way to speak TLS is made of.
type identityFiles struct {
	ca               string // paths with \n between them
	certificate, key string
}

func (f identityFiles) authorities() []string {
	if f.ca == "" {
		return nil
	}
	return strings.Split(f.ca, "\n")
}

func (f identityFiles) all() []string {
	paths := f.authorities()
	if f.certificate != "" {
		paths = append(paths, f.certificate, f.key)
	}
	return paths
}

// identities of all configs: of several handlers that name the same files, one reads them, and says what is wrong with them.
var identities = state.NewPool[identityFiles, *identity]()

// identity is the content of files, read again when they change.
type identity struct {
	files    identityFiles
	now      atomic.Pointer[material] // the last one that was good
	lookAt   atomic.Int64             // in ns since identityEpoch
	unusable *degraded.Part

	mu     sync.Mutex
	seen   []os.FileInfo // what was read last, nil for a file that is not there
	failed bool          // that was no good
}

var identityEpoch = time.Now()

// material is what TLS needs of files.
type material struct {
	authorities *x509.CertPool   // nil: those of the system
	own         *tls.Certificate // nil: none
}

// holdIdentity returns a reference to the content of files. They are read now, also where another handler has them, and it is an
// error if they are no good.
func holdIdentity(files identityFiles) (*state.Ref[*identity], error) {
	ref, err := identities.Acquire(files, func() (*identity, error) {
		return &identity{files: files, unusable: degraded.New("upstream_tls")}, nil
	})
	if err != nil {
		return nil, err
	}
	if err := ref.Value().read(); err != nil {
		_ = ref.Release()
		return nil, err
	}
	return ref, nil
}

// Destruct has nobody told any more that the files are no good.
func (i *identity) Destruct() error {
	i.unusable.Close()
	return nil
}

// read reads the files, whether they have changed or not.
func (i *identity) read() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	seen := look(i.files.all())
	next, err := i.files.read()
	if err == nil {
		i.take(next, seen)
	}
	return err
}

func (i *identity) take(next *material, seen []os.FileInfo) {
	i.now.Store(next)
	i.seen, i.failed = seen, false
	i.lookAt.Store(int64(time.Since(identityEpoch) + lookEvery))
	i.unusable.End(logqueue.Default("forward"), "the certificates for upstreams can be read again", i.files.field())
}

// latest returns the content of the files, after a look whether they have changed where the last one was a second ago. While they are no
// good, it returns what they had before.
func (i *identity) latest() *material {
	due, now := i.lookAt.Load(), time.Since(identityEpoch)
	if int64(now) >= due && i.lookAt.CompareAndSwap(due, int64(now+lookEvery)) {
		i.refresh()
	}
	return i.now.Load()
}

// refresh reads the files if they have changed. Who replaces a certificate and its key writes one after the other: that they do not fit
// is a fault only if they are still the same at the next look.
func (i *identity) refresh() {
	if !i.mu.TryLock() {
		return // somebody looks, and may wait for a file system that hangs: no more than one does
	}
	defer i.mu.Unlock()
	seen := look(i.files.all())
	changed := !slices.EqualFunc(seen, i.seen, sameFile)
	if !changed && !i.failed {
		return
	}
	next, err := i.files.read()
	if err == nil {
		i.take(next, seen)
		return
	}
	if !changed {
		i.unusable.Begin(logqueue.Default("forward"), "certificates for upstreams can't be used, those read before are",
			i.files.field(), zap.Error(err))
	}
	i.seen, i.failed = seen, true
}

func (f identityFiles) field() zap.Field { return zap.Strings("files", f.all()) }

// look returns what the system says of files, nil for those that are not there.
func look(paths []string) []os.FileInfo {
	seen := make([]os.FileInfo, len(paths))
	for n, path := range paths {
		seen[n], _ = os.Stat(path)
	}
	return seen
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// read returns what the files have in them.
func (f identityFiles) read() (*material, error) {
	m := new(material)
	for _, path := range f.authorities() {
		if m.authorities == nil {
			m.authorities = x509.NewCertPool()
		}
		if err := addAuthorities(m.authorities, path); err != nil {
			return nil, fmt.Errorf("ca: %q: %w", path, err)
		}
	}
	if f.certificate == "" {
		return m, nil
	}
	certificate, err := readFile(f.certificate)
	if err != nil {
		return nil, fmt.Errorf("client_certificate: %q: %w", f.certificate, err)
	}
	key, err := readFile(f.key)
	if err != nil {
		return nil, fmt.Errorf("client_certificate: %q: %w", f.key, err)
	}
	own, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("client_certificate: %q: expected a certificate and its key %q: %w", f.certificate, f.key, err)
	}
	m.own = &own
	return m, nil
}

func addAuthorities(to *x509.CertPool, path string) error {
	rest, err := readFile(path)
	if err != nil {
		return err
	}
	blocks := bytes.Count(rest, []byte("-----BEGIN "))
	if blocks == 0 {
		return errors.New("expected certificates in PEM form")
	}
	for n := range blocks {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil { // it passes over what is damaged
			return fmt.Errorf("%d of %d certificates are damaged", blocks-n, blocks)
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("%q: expected nothing but certificates", block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		to.AddCert(certificate)
	}
	return nil
}

// readFile reads a file that has an end.
func readFile(path string) ([]byte, error) {
	file, info, err := filewatch.Open(path)
	if failed := (*os.PathError)(nil); errors.As(err, &failed) {
		err = failed.Err // the caller names the path
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info.Size() > maxCertificates {
		return nil, fmt.Errorf("it has %d bytes, expected at most %d MiB", info.Size(), maxCertificates>>20)
	}
	return io.ReadAll(io.LimitReader(file, maxCertificates))
}
