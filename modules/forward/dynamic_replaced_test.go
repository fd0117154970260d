package forward

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// A source with other options, which asks the same, begins with what is known: of the source that it replaces, and after a restart of what that has
// stored.
func TestDynamicOtherOptions(t *testing.T) {
	var away atomic.Bool
	a := refuses()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, a)
	}))
	t.Cleanup(web.Close)
	file := filepath.Join(t.TempDir(), "upstreams")
	list := func(user string) string { return strings.Replace(web.URL, "http://", "http://"+user, 1) }
	spoken := stageOf(t.Name())
	const known, unknown = true, false
	for name, c := range map[string]struct {
		before, after string
		known         bool
	}{
		"refresh":      {`"url", "url": "` + list("") + `/1"`, `"url", "url": "` + list("") + `/1", "refresh": "2s"`, known},
		"grace period": {`"url", "url": "` + list("") + `/2"`, `"url", "url": "` + list("") + `/2", "grace_period": "1h"`, known},
		"password":     {`"url", "url": "` + list("u:old@") + `/3"`, `"url", "url": "` + list("u:new@") + `/3"`, known},
		"token":        {`"url", "url": "` + list("old@") + `/4"`, `"url", "url": "` + list("new@") + `/4"`, known},
		"user":         {`"url", "url": "` + list("u:pw@") + `/5"`, `"url", "url": "` + list("v:pw@") + `/5"`, unknown},
		"query":        {`"url", "url": "` + list("") + `/6?of=a"`, `"url", "url": "` + list("") + `/6?of=b"`, unknown},
		"path":         {`"url", "url": "` + list("") + `/7"`, `"url", "url": "` + list("") + `/8"`, unknown},
		"file":         {fmt.Sprintf(`"file", "path": %q`, file), fmt.Sprintf(`"file", "path": %q, "grace_period": "1h"`, file), known},
		"who is asked": {fmt.Sprintf(`"test_spoken", "name": %q, "whom": "a"`, t.Name()), fmt.Sprintf(`"test_spoken", "name": %q, "whom": "b"`, t.Name()), known},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", name, restart), func(t *testing.T) {
				away.Store(false)
				write(t, file, []byte(a))
				spoken.says(lists(t, a))
				config := func(source string) string { return `{"dynamic": [{"source": ` + source + `}]}` }
				h, _, unload := provision(t, config(c.before))
				has := func(h *Handler) func() error {
					return func() error {
						if now := h.rosters.now.Load(); !now.pool.Has(a) {
							return fmt.Errorf("%d upstreams", now.pool.Len())
						}
						return nil
					}
				}
				eventually(t, has(h))
				away.Store(true)
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
				spoken.says(errAway)
				if restart {
					unload()
				}
				h, _, _ = provision(t, config(c.after))
				if c.known && !restart {
					if err := has(h)(); err != nil {
						t.Errorf("at once: %v", err)
					}
				}
				eventually(t, func() error {
					if h.dynamic.sources[0].state().Err == nil {
						return fmt.Errorf("the source has not failed")
					}
					return nil
				})
				if err := has(h)(); (err == nil) != c.known {
					t.Errorf("it fails: %v", err)
				}
			})
			if files, err := filepath.Glob(filepath.Join(storageRoot, "portgate", "upstreams", "*")); err == nil {
				for _, file := range files {
					_ = os.Remove(file)
				}
			}
		}
	}
}

// Of two sources that ask different servers the same, each begins with its own answer after a restart.
func TestDynamicCopiesOfTwoServers(t *testing.T) {
	upstreams := map[string]string{"a": refuses(), "b": refuses()}
	config := func(whom string) string {
		return fmt.Sprintf(`{"dynamic": [{"source": "test_spoken", "name": %q, "whom": %q}]}`, t.Name(), whom)
	}
	source := stageOf(t.Name())
	for _, restarted := range []bool{false, true} {
		for _, whom := range []string{"a", "b"} {
			source.says(errAway)
			if !restarted {
				source.says(lists(t, upstreams[whom]))
			}
			h, _, unload := provision(t, config(whom))
			eventually(t, func() error {
				if pool := h.rosters.now.Load().pool; pool.Len() != 1 || !pool.Has(upstreams[whom]) {
					return fmt.Errorf("restarted %v: not the one upstream that %s has named", restarted, whom)
				}
				return nil
			})
			unload()
		}
	}
}

// While two sources ask the same, as in a reload, the later answer is the one that stays stored.
func TestDynamicOutdatedCopy(t *testing.T) {
	t.Parallel()
	source := stageOf(t.Name())
	source.says(lists(t, refuses()))
	config := func(grace string) string {
		return fmt.Sprintf(`{"dynamic": [{"source": "test_spoken", "name": %q, "grace": %q}]}`, t.Name(), grace)
	}
	first, _, _ := provision(t, config("1h"))
	second, _, _ := provision(t, config("2h"))
	a, b := first.dynamic.sources[0].ref.Value(), second.dynamic.sources[0].ref.Value()
	eventually(t, func() error {
		older, newer := a.keeper.State(), b.keeper.State()
		if !older.Known || !newer.Confirmed.After(older.Confirmed) {
			return fmt.Errorf("answers of %v and %v", older.Confirmed, newer.Confirmed)
		}
		if !discoveries.outdated(a, older.Confirmed) || discoveries.outdated(b, newer.Confirmed) {
			t.Errorf("answers of %v and %v", older.Confirmed, newer.Confirmed)
		}
		return nil
	})
}

// What a list is called has neither a password nor a token.
func TestListOf(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://u:pw@h/list?of=a#x": "https://u@h/list?of=a",
		"https://token@h/list":       "https://h/list",
		"https://h/list":             "https://h/list",
	} {
		location, err := url.Parse(given)
		if err != nil {
			t.Fatal(err)
		}
		if got := listOf(*location); got != want {
			t.Errorf("%q: %q, want %q", given, got, want)
		}
	}
}
