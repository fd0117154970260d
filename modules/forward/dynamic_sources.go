package forward

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/filewatch"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

var (
	errNoName = errors.New(`"": expected the name of the records`)
	errNoPath = errors.New(`"": expected the path of a file`)
)

// known replaces the placeholders that are the same for the whole process, such as those of the environment.
func known(s string) string { return caddy.NewReplacer().ReplaceKnown(s, "") }

func hasPlaceholder(s string) bool { return strings.Contains(s, "{") }

func checkName(name string) error {
	if name == "" {
		return errNoName
	}
	return nil
}

func errRefresh(given string) error {
	return fmt.Errorf("%q: expected a duration of at least 1s", given)
}

func refreshOf(option *caddy.Duration) (time.Duration, error) {
	if option == nil {
		return discovery.DefaultRefresh, nil
	}
	if time.Duration(*option) < discovery.MinRefresh {
		return 0, fmt.Errorf("refresh: %w", errRefresh(time.Duration(*option).String()))
	}
	return time.Duration(*option), nil
}

func resolverOf(options []string) (r discovery.Resolver, err error) {
	for _, option := range options {
		server, err := discovery.ParseServer(known(option))
		if err != nil {
			return r, fmt.Errorf("resolvers: %w", err)
		}
		r.Servers = append(r.Servers, server)
	}
	return r, nil
}

func madeOf(source discovery.Source, name string, grace *caddy.Duration) (made discovery.Made, err error) {
	made = discovery.Made{Source: source, Name: name}
	if grace != nil {
		if made.GracePeriod = time.Duration(*grace); made.GracePeriod == 0 {
			return made, fmt.Errorf("grace_period: %w", errNoTime("0s"))
		}
	}
	return made, nil
}

// FileUpstreams has the upstreams that a file lists: one a line, or as a JSON array. It is read again when it changes.
type FileUpstreams struct {
	// Path leads to the file.
	Path string `json:"path"`

	// GracePeriod is how long the last good content is used while the file can't be read. More than 0. Default: 24h.
	GracePeriod *caddy.Duration `json:"grace_period,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*FileUpstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: namespace + ".file", New: func() caddy.Module { return new(FileUpstreams) }}
}

// Source implements [discovery.Maker].
func (f *FileUpstreams) Source() (made discovery.Made, err error) {
	if f.Path = known(f.Path); f.Path == "" {
		return made, fmt.Errorf("path: %w", errNoPath)
	}
	made, err = madeOf(&fileSource{f.Path}, "file "+f.Path, f.GracePeriod)
	made.Question = f.Path
	return made, err
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	file <path> {
//		grace_period <duration>
//	}
func (f *FileUpstreams) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	return unmarshalSource(d, 1, "the path of a file", func(args []string) error {
		if f.Path = args[0]; f.Path == "" {
			return errNoPath
		}
		return nil
	}, positive("grace_period", &f.GracePeriod))
}

// fileSource reads upstreams from a file.
type fileSource struct{ path string }

// Run implements [discovery.Source].
func (f *fileSource) Run(ctx context.Context, to discovery.Sink) {
	log := logqueue.Default("forward").With(zap.String("source", "file "+f.path))
	unwatched := degraded.New("upstream_watch")
	defer unwatched.Close()
	watcher, err := filewatch.New(f.path)
	if err != nil {
		unwatched.Begin(log, "can't watch, the file is looked at every few seconds instead", zap.Duration("interval", filewatch.Poll), zap.Error(err))
	}
	reader := &filewatch.Reader{Path: f.path, Most: discovery.MaxBytes}
	failed := ""
	look := func() time.Duration {
		data, changed, again, err := reader.Look()
		switch {
		case err == nil && changed:
			var answer discovery.Answer
			if answer, err = discovery.Parse(data, true); err == nil {
				failed = ""
				to.Answer(answer)
			}
		case err == nil && failed == "":
			to.Same()
		}
		if err != nil && failed != err.Error() {
			failed = err.Error()
			to.Failed(err)
		}
		return again
	}
	look() // the first one waits for nothing
	watcher.Run(ctx, look, func(err error) { log.Debug("watching a file", zap.Error(err)) })
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (f *FileUpstreams) UnmarshalJSON(data []byte) error {
	type options FileUpstreams
	return caddyfile.UnmarshalJSON(data, (*options)(f))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (s *SRVUpstreams) UnmarshalJSON(data []byte) error {
	type options SRVUpstreams
	return caddyfile.UnmarshalJSON(data, (*options)(s))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (a *AUpstreams) UnmarshalJSON(data []byte) error {
	type options AUpstreams
	return caddyfile.UnmarshalJSON(data, (*options)(a))
}

// Interface guards
var (
	_ caddycaddyfile.Unmarshaler = (*FileUpstreams)(nil)
	_ discovery.Maker            = (*FileUpstreams)(nil)
	_ json.Unmarshaler           = (*FileUpstreams)(nil)
)
