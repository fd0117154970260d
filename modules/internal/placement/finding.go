package placement

import (
	"reflect"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// Place is where a handler stands in a layer4 app.
type Place struct {
	Network, Listener string // as a session has them
	// Path leads to the handler from its server.
	Path string
	// Always tells that every connection of the listener comes by.
	Always bool
}

// Finding is where all handlers of a config stand that have one name and JSON. They share it, because there may be thousands of
// them: what each of them did with the places of all would take time with the square of their number. See [Shared].
type Finding struct {
	identity
	stands []stand

	wrong   string // what is wrong with their order, see standing
	leadsOn bool   // connections that one of them passes on may leave the routes
	proxied string // see standing

	index   gate.Index[int] // of stands, by listener
	indexed sync.Once

	mu     sync.Mutex
	shared []outcome
}

// identity is what handlers have in common that are alike.
type identity struct {
	name      string
	canonical string // as [caddyfile.CanonicalJSON] has it, without the name
}

// Canonical returns the JSON of the handlers without their name, as [caddyfile.CanonicalJSON] has it.
func (f *Finding) Canonical() string { return f.canonical }

// stand is one place of a handler at one listen address, which may be a range of ports.
type stand struct {
	addr   caddy.NetworkAddress
	server int // numbers the servers
	path   string
	always bool
}

func (s *stand) place(offset uint) Place {
	network, listener := gate.SessionOf(s.addr, offset)
	return Place{network, listener, s.path, s.always}
}

// Places returns one place for each port of the addresses that the servers listen on in which such a handler stands. Outside a layer4
// app, as in front of an HTTP site, there are none.
func (f *Finding) Places() (places []Place) {
	for i := range f.stands {
		for offset := range f.stands[i].addr.PortRangeSize() {
			places = append(places, f.stands[i].place(offset))
		}
	}
	return places
}

// At returns the places on one listener, whose network and address are as a session has them.
func (f *Finding) At(network, listener string) (places []Place) {
	f.indexed.Do(func() {
		for i := range f.stands {
			first := f.stands[i].place(0)
			f.index.Add(first.Network, first.Listener, f.stands[i].addr.PortRangeSize(), i)
		}
	})
	for _, i := range f.index.At(network, listener) {
		places = append(places, Place{network, listener, f.stands[i].path, f.stands[i].always})
	}
	return places
}

// EachRange calls f with the listen addresses of the places as sessions have them: the network, the listener of the first port, and
// how many ports follow from it on.
func (f *Finding) EachRange(call func(network, listener string, ports uint)) {
	for i := range f.stands {
		first := f.stands[i].place(0)
		call(first.Network, first.Listener, f.stands[i].addr.PortRangeSize())
	}
}

// Paths returns the paths of the places, each once.
func (f *Finding) Paths() (paths []string) {
	known := make(map[string]struct{})
	for i := range f.stands {
		path := f.stands[i].path
		if _, again := known[path]; !again {
			known[path] = struct{}{}
			paths = append(paths, path)
		}
	}
	return paths
}

// Listens returns the addresses that the servers listen on in which such a handler stands: those of the one that is being
// provisioned are among them.
func (f *Finding) Listens() (listen []caddy.NetworkAddress) {
	noted, path := -1, ""
	for i := range f.stands {
		s := &f.stands[i]
		if s.server != noted {
			noted, path = s.server, s.path
		}
		if s.path == path { // the first place of the server
			listen = append(listen, s.addr)
		}
	}
	return listen
}

// add notes a place of a server that has these listen addresses.
func (f *Finding) add(server int, listen []listening, path string, always bool) {
	for i := range listen {
		f.stands = append(f.stands, stand{listen[i].addr, server, path, always})
	}
}

func (f *Finding) standsAs(s standing) {
	if f.wrong == "" {
		f.wrong = s.wrong
	}
	if f.proxied == "" {
		f.proxied = s.proxied
	}
	f.leadsOn = f.leadsOn || !s.ended
}

type outcome struct {
	kind  reflect.Type
	value any
	err   error
}

// Shared returns what find returns, which it calls once for all handlers of a finding. They all have the same options and the same
// places, so whatever follows from these is the same for each of them, an error, too. It is known by its type.
func Shared[T any](f *Finding, find func(*Finding) (T, error)) (T, error) {
	kind := reflect.TypeFor[T]()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, known := range f.shared {
		if known.kind == kind {
			return known.value.(T), known.err
		}
	}
	value, err := find(f)
	f.shared = append(f.shared, outcome{kind, value, err})
	return value, err
}
