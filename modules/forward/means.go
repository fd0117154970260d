package forward

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// special is what is special about how a handler's upstreams are connected to, as configured. The zero value is nothing.
type special struct {
	any      bool
	tls      bool               // with one of them TLS is spoken
	told     bool               // not all of them get the same header
	versions [3]bool            // of the headers that they get
	common   options            // of those that have none of their own
	own      map[string]options // by the name of the upstream

	held []*state.Ref[*identity]
}

// options are those of one upstream.
type options struct {
	preface preface
	tls     *TLS      // nil: none
	files   *identity // that TLS needs, nil where there are none
}

// means is how an upstream is connected to.
type means struct {
	preface preface
	tls     *encryption   // nil: none
	kept    *relay.Keeper // nil: none
}

// applyMeans reads the options of the handler and those of single upstreams, which go before them.
func (h *Handler) applyMeans() error {
	if err := h.TLS.check(); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	s := special{common: options{preface: h.preface, tls: h.TLS.over(nil)}, own: make(map[string]options)}
	s.add(s.common)
	for i := range h.Upstreams {
		t := &h.Upstreams[i]
		if err := t.TLS.check(); err != nil {
			return fmt.Errorf("upstream: %q: tls: %w", t.Address, err)
		}
		if t.TLS == nil && t.ProxyProtocol == "" {
			continue
		}
		own := options{preface: h.preface, tls: t.TLS.over(h.TLS)}
		if t.ProxyProtocol != "" {
			var err error
			if own.preface, err = parseOwnPreface(t.ProxyProtocol); err != nil {
				return fmt.Errorf("upstream: %q: proxy_protocol: %w", t.Address, err)
			}
			s.told = s.told || own.preface != h.preface
		}
		s.add(own)
		s.own[caddy.NewReplacer().ReplaceKnown(t.Address, "")] = own
	}
	if err := h.Preconnect.check(); err != nil {
		return fmt.Errorf("preconnect: %w", err)
	}
	s.any = s.tls || s.told || h.Preconnect != nil
	h.special = s
	return nil
}

func (s *special) add(o options) {
	s.tls = s.tls || o.tls != nil
	s.versions[o.preface.version] = true
}

// spoken tells apart ways to speak TLS with upstreams, "" where none is spoken. What a handler finds out by a handshake is true of handlers alone that
// speak it in the same way.
func (s *special) spoken() string {
	if !s.tls {
		return ""
	}
	own := make(map[string]*TLS, len(s.own))
	for name, o := range s.own {
		own[name] = o.tls
	}
	spoken, _ := json.Marshal([]any{s.common.tls, own}) // strings alone, and maps in the order of their keys
	return string(spoken)
}

// begin reads the files that options name, and holds what they have in them until end: whichever upstreams there are, and whatever becomes of
// the files. After an error end releases what there is.
func (s *special) begin() (err error) {
	known := make(map[identityFiles]*identity)
	if s.common, err = s.hold(s.common, known); err != nil {
		return err
	}
	for name, own := range s.own {
		if s.own[name], err = s.hold(own, known); err != nil {
			return err
		}
	}
	return nil
}

func (s *special) hold(o options, known map[identityFiles]*identity) (options, error) {
	if o.tls == nil {
		return o, nil
	}
	files := o.tls.identityFiles()
	if known[files] == nil && files != (identityFiles{}) {
		ref, err := holdIdentity(files)
		if err != nil {
			return o, err
		}
		s.held = append(s.held, ref)
		known[files] = ref.Value()
	}
	o.files = known[files]
	return o, nil
}

func (s *special) end() {
	for _, ref := range s.held {
		_ = ref.Release()
	}
}

// of returns the options of an upstream.
func (s *special) of(name string) options {
	if own, has := s.own[name]; has {
		return own
	}
	return s.common
}

// holdMeans finds out how the upstreams are connected to, and holds what that needs. before is the roster of the handler that this one
// follows, or nil.
func (r *roster) holdMeans(h *Handler, before *roster, upstreams []upstream.Upstream) error {
	s := &h.special
	if !s.any {
		return nil
	}
	r.means = make([]means, len(upstreams))
	r.encryptions = make(map[alikeTLS]*encryption)
	for i := range upstreams {
		u, m := &upstreams[i], &r.means[i]
		o := s.of(u.Name)
		m.preface, r.named[i].preface = o.preface, o.preface
		if o.tls != nil {
			var err error
			if m.tls, err = r.encryption(before, u, o); err != nil {
				return fmt.Errorf("tls: %w", err)
			}
		}
		if err := r.keepTo(h, i, m); err != nil {
			return fmt.Errorf("preconnect: %w", err)
		}
	}
	return nil
}

// keepTo has connections to an upstream kept ready, if that may get sessions.
func (r *roster) keepTo(h *Handler, position int, m *means) error {
	if h.Preconnect == nil {
		return nil
	}
	u := r.pool.At(position)
	if err := checkKept(u); err != nil || u.Drained || u.Maint {
		return err
	}
	ref, err := r.holdKeeper(h, position, m)
	if err != nil {
		return err
	}
	r.held, m.kept = append(r.held, ref), ref.Value().Keeper
	return nil
}

// alikeTLS are upstreams with which TLS is spoken in the same way.
type alikeTLS struct {
	options    *TLS
	serverName string
}

// encryption returns what speaks TLS with an upstream: the same for all that are alike, and the same as before, with the sessions of TLS that it
// can resume.
func (r *roster) encryption(before *roster, u *upstream.Upstream, o options) (*encryption, error) {
	name, err := o.tls.serverName(u)
	if err != nil {
		return nil, err
	}
	key := alikeTLS{o.tls, name}
	e := r.encryptions[key]
	if e == nil && before != nil {
		e = before.encryptions[key]
	}
	if e == nil {
		e = newEncryption(o.tls, name, o.files)
	}
	r.encryptions[key] = e
	return e, nil
}

// told is what upstreams of a session are told about the client in a header.
type told struct {
	all       []byte     // the same for all of them
	byVersion *[3][]byte // or not
}

// tell makes the headers of a session, see [preface.header].
func (h *Handler) tell(sess *session.Session, conn net.Conn, to netip.AddrPort) (t told) {
	if !h.special.told {
		t.all = h.preface.header(sess, conn, to)
		return t
	}
	t.byVersion = new([3][]byte)
	for version, used := range h.special.versions {
		if used {
			t.byVersion[version] = preface{version: byte(version)}.header(sess, conn, to)
		}
	}
	return t
}

// to returns the header for an upstream.
func (t told) to(p preface) []byte {
	if t.byVersion != nil {
		return t.byVersion[p.version]
	}
	return t.all
}

// how implements Way of a relay of streams.
func (w *way) how(told told) (how relay.Way) {
	position := w.Position()
	if position < 0 {
		return how
	}
	m := &w.roster.means[position]
	how.Preface, how.Kept = told.to(m.preface), m.kept
	if m.tls != nil {
		how.Wrap = m.tls.wrap
	}
	return how
}

// prefaceOf returns what an upstream of a session of datagrams is told, nil where that is nothing.
func (t told) prefaceOf(p preface) *relay.Preface {
	if header := t.to(p); header != nil {
		return &relay.Preface{Header: header, Each: !p.first}
	}
	return nil
}
