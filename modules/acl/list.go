package acl

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/recheck"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// list is a set of addresses that may change while handlers use it.
type list struct {
	name string // what it is called in logs and metrics, such as "file /etc/portgate/bad"
	set  atomic.Pointer[ipset.Set]

	mu         sync.Mutex
	admissions map[*recheck.Admission]int // by how many rules of one acl
	failed     string                     // what was wrong when it was last loaded
	report     ipset.Report               // of the content
	confirmed  time.Time                  // when it was last loaded, or found to be unchanged

	loading, lines *degraded.Part

	denies, allows atomic.Int64 // rules of configs that live
}

// init gives a list its name. A list that is in the config itself needs none.
func (l *list) init(name string) {
	l.name = name
	l.loading, l.lines = degraded.New("list_load"), degraded.New("list_lines")
}

// log is where everything about the list is written.
func (l *list) log() *zap.Logger { return logqueue.Default("acl").With(zap.String("list", l.name)) }

func (l *list) contains(addr netip.Addr) bool { return l.set.Load().Contains(addr) }

// replace gives the list a new content, which every lookup from now on finds, and has all living sessions judged by it.
func (l *list) replace(set *ipset.Set) { l.change(set, nil) }

// change is replace for where only the addresses in these prefixes have come or gone; nil: all may have.
func (l *list) change(set *ipset.Set, prefixes []netip.Prefix) {
	l.set.Store(set)
	collectors.entries.WithLabelValues(l.name).Set(float64(set.Len()))
	l.mu.Lock()
	for admission := range l.admissions {
		admission.Changed()
	}
	concerned := len(l.admissions) > 0
	l.mu.Unlock()
	if concerned {
		enforcing.request(prefixes)
	}
}

// watch has the admission know when the content changes, and living sessions be judged then.
func (l *list) watch(admission *recheck.Admission) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.admissions == nil {
		l.admissions = make(map[*recheck.Admission]int)
	}
	l.admissions[admission]++
}

// serves has the list know of a rule, until release is called.
func (l *list) serves(allow bool) (release func() error) {
	rules := &l.denies
	if allow {
		rules = &l.allows
	}
	rules.Add(1)
	return withoutError(func() { rules.Add(-1) })
}

// actions are what the rules do that name the list.
func (l *list) actions() (all []string) {
	if l.allows.Load() > 0 {
		all = append(all, allow)
	}
	if l.denies.Load() > 0 {
		all = append(all, deny)
	}
	return all
}

func (l *list) unwatch(admission *recheck.Admission) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.admissions[admission]--; l.admissions[admission] == 0 {
		delete(l.admissions, admission)
	}
}

// loaded is called after the content was read from where it comes from.
func (l *list) loaded(set *ipset.Set, report ipset.Report) {
	l.take(set, report, nil)
	l.log().Info("list loaded", zap.Int("entries", set.Len()))
}

// take is loaded without a word about what is as it should be. Only the addresses in the prefixes have come; nil: all may have
// come or gone.
func (l *list) take(set *ipset.Set, report ipset.Report, prefixes []netip.Prefix) {
	l.succeeded(time.Now())
	l.noteBadLines(report)
	l.noteMaskedLines(report)
	l.mu.Lock()
	l.report = report
	l.mu.Unlock()
	l.change(set, prefixes)
}

// succeeded ends a failure: the content is what it should be at this time.
func (l *list) succeeded(at time.Time) {
	collectors.loaded.WithLabelValues(l.name).Set(float64(at.UnixMilli()) / 1000)
	l.mu.Lock()
	l.failed, l.confirmed = "", at
	l.mu.Unlock()
	l.loading.End(l.log(), "list is loaded again")
}

// confirmedAt is when the content was last loaded, or found to be unchanged.
func (l *list) confirmedAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confirmed
}

// noteBadLines says what was left out, of each content anew.
func (l *list) noteBadLines(report ipset.Report) {
	collectors.badLines.WithLabelValues(l.name).Set(float64(report.Bad))
	if report.Bad == 0 {
		l.lines.End(l.log(), "list has no bad lines any more")
		return
	}
	first := make([]string, len(report.First))
	for i, bad := range report.First {
		first[i] = bad.Error()
	}
	message := "list has bad lines, which are left out"
	fields := []zap.Field{zap.Int("bad", report.Bad), zap.Int("lines", report.Lines), zap.Strings("first", first)}
	if l.lines.Is() {
		l.log().Info(message, fields...)
	}
	l.lines.Begin(l.log(), message, fields...)
}

// noteMaskedLines says what is not taken as it is written, once until there is no such line any more.
func (l *list) noteMaskedLines(report ipset.Report) {
	collectors.maskedLines.WithLabelValues(l.name).Set(float64(report.Masked))
	l.mu.Lock()
	known := l.report.Masked > 0
	l.mu.Unlock()
	if report.Masked > 0 && !known {
		l.log().Warn("list has prefixes with bits set behind their length, which are taken as their networks",
			zap.Int("masked", report.Masked), zap.Int("lines", report.Lines), zap.String("first", report.Mask.Error()))
	}
}

// keep is called when the list can't be loaded, so that its content stays in use. It logs that once, and again if the reason
// changes.
func (l *list) keep(err error) {
	collectors.loadErrors.WithLabelValues(l.name).Inc()
	l.mu.Lock()
	another := l.failed != "" && l.failed != err.Error()
	l.failed = err.Error()
	l.mu.Unlock()
	if another {
		l.log().Info("list still can't be loaded", zap.Error(err))
	}
	l.loading.Begin(l.log(), "list can't be loaded, its last good content stays in use",
		zap.Int("entries", l.set.Load().Len()), zap.Error(err))
}

// opened is called once the list has its first content.
func (l *list) opened() { collectors.use(l) }

// forget removes the list from the metrics.
func (l *list) forget() {
	l.loading.Close()
	l.lines.Close()
	collectors.forget(l)
}

// storages are those of the configs that use a list. The one that the list was opened with stays, for what is still to be stored when
// nobody uses it.
type storages = state.Youngest[certmagic.Storage]

// source is where the content of a list comes from. It is shared by all handlers of all configs that name it, so that it
// is loaded once.
type source interface {
	caddy.Destructor
	content() *list
}

// sourceKey tells sources apart.
type sourceKey struct {
	kind     string // "file", "url", "country", "asn"
	location string
	values   string        // of a country or asn rule
	interval time.Duration // of a url
	timeout  time.Duration // of a url
	allow    bool          // of a file or url: it says whom to let in, so that what is in doubt is left out
}

// hostBits says what becomes of prefixes of a list that have bits set behind their length.
func (k *sourceKey) hostBits() ipset.HostBits {
	if k.allow {
		return ipset.RefuseHostBits
	}
	return ipset.MaskHostBits
}

var sources = state.NewPool[sourceKey, source]()
