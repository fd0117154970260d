package acl

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/fetch"
)

// fetchOnce opens a feed at a real server, and closes it.
func fetchOnce(t *testing.T, location string, client *http.Client) (*feed, error) {
	t.Helper()
	f, err := openFeed(feedKey(location, time.Hour), store(t), client)
	if err == nil {
		must(t, f.Destruct())
	}
	return f, err
}

// Redirects are followed to other places too, but not for ever, not to where anybody can listen, and without what is secret.
func TestFeedRedirects(t *testing.T) {
	t.Parallel()
	var reached atomic.Pointer[http.Header]
	list := func(w http.ResponseWriter, r *http.Request) {
		reached.Store(&r.Header)
		fmt.Fprintln(w, one)
	}
	plain, secure := httptest.NewServer(http.HandlerFunc(list)), httptest.NewTLSServer(http.HandlerFunc(list))
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hops, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/hops/"))
		switch {
		case err == nil && hops > 0:
			http.Redirect(w, r, fmt.Sprintf("/hops/%d", hops-1), http.StatusFound)
		case err == nil:
			list(w, r)
		case r.URL.Path == "/plain":
			http.Redirect(w, r, plain.URL, http.StatusMovedPermanently)
		case r.URL.Path == "/secure":
			http.Redirect(w, r, secure.URL, http.StatusTemporaryRedirect)
		case r.URL.Path == "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}
	})
	from, secureFrom := httptest.NewServer(answer), httptest.NewTLSServer(answer)
	t.Cleanup(from.Close)
	t.Cleanup(secureFrom.Close)
	client := fetch.NewClient()
	transport := client.Transport.(interface{ Unwrap() *http.Transport }).Unwrap()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	for location, want := range map[string]string{
		from.URL + "/hops/5":         "",
		from.URL + "/hops/6":         "expected at most 5 redirects",
		from.URL + "/plain":          "",
		from.URL + "/secure":         "",
		secureFrom.URL + "/secure":   "",
		secureFrom.URL + "/plain":    "the server redirects from https to http, expected https",
		secureFrom.URL + "/file":     "the server redirects from https to http, expected https",
		from.URL + "/file":           `unsupported protocol scheme "file"`,
		from.URL + "/plain?key=k3y":  "",
		from.URL + "/hops/1?key=k3y": "",
	} {
		location = strings.Replace(location, "://", "://user:s3cret@", 1)
		reached.Store(nil)
		f, err := fetchOnce(t, location, client)
		if got := fmt.Sprint(err); want != "" && (got != want || strings.Contains(got, "s3cret")) || want == "" && err != nil {
			t.Errorf("%s: %v, want %s", location, err, want)
		}
		if want != "" {
			continue
		}
		if !f.contains(addr(one)) {
			t.Errorf("%s: the list is not loaded", location)
		}
		header := fmt.Sprint(*reached.Load())
		if own := strings.Contains(location, "/hops/"); strings.Contains(header, "Authorization") != own || strings.Contains(header, "k3y") {
			t.Errorf("%s: reached with %s", location, header)
		}
	}
}

func packed(t testing.TB, text string) string {
	t.Helper()
	var to bytes.Buffer
	packer := gzip.NewWriter(&to)
	_, err := io.WriteString(packer, text)
	must(t, errors.Join(err, packer.Close()))
	return to.String()
}

// A list is read however the server sends it, and its copy too.
func TestFeedEncodings(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"plain":                             textAnswer(one),
		"identity":                          encoded("identity", one),
		"a .gz file":                        textAnswer(packed(t, one)),
		"gzip":                              encoded("gzip", packed(t, one)),
		"x-gzip":                            encoded("x-gzip", packed(t, one)),
		"GZIP":                              encoded("GZIP", packed(t, one)),
		"a packed .gz":                      encoded("gzip", packed(t, packed(t, one))),
		"gzip that was unpacked on the way": encoded("gzip", one),
		"chunked": func(w http.ResponseWriter, _ *http.Request) {
			for _, part := range []string{"192.", "0.2.1\n192.0.", "2.9\n"} {
				fmt.Fprint(w, part)
				w.(http.Flusher).Flush()
			}
		},
	} {
		p := publish(t, answer)
		storage := store(t)
		f := follow(t, p.URL, time.Hour, storage)
		again := follow(t, p.URL, time.Hour, storage)
		if !f.contains(addr(one)) || !again.contains(addr(one)) || f.contains(addr(two)) || p.asked.Load() > 1 {
			t.Errorf("%s: the list is not loaded, or not from its copy", name)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"br":                 {encoded("br", "x"), `content-encoding: "br": expected gzip or none`},
		"cut":                {encoded("gzip", packed(t, one)[:20]), "unexpected EOF"},
		"unasked, unchanged": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, "the server answered 304 Not Modified, expected 200 OK"},
		"a part": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprint(w, one)
		}, "the server answered 206 Partial Content, expected 200 OK"},
	} {
		p := publish(t, c.answer)
		if _, err := fetchOnce(t, p.URL, feedClient); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func encoded(encoding, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", encoding)
		fmt.Fprint(w, body)
	}
}

// A weak tag goes back as it came. A server that finds the list unchanged for ever is right.
func TestFeedThatNeverChanges(t *testing.T) {
	t.Parallel()
	const tag = `W/"list-7-gzip"`
	p := publish(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprint(w, one)
	})
	f := follow(t, p.URL, often, store(t))
	set, confirmed := f.set.Load(), f.confirmedAt()
	eventually(t, "many requests", func() bool { return p.asked.Load() > 20 })
	if f.set.Load() != set || f.loading.Is() || !f.confirmedAt().After(confirmed) {
		t.Error("the list was loaded again, or not found to be in order")
	}
}

// The feeds of a config are fetched at the same time: each server answers when the others have been asked, too. If one fails,
// the config is refused and the others are left.
func TestFeedsAreFetchedAtTheSameTime(t *testing.T) {
	t.Parallel()
	var asked sync.WaitGroup
	asked.Add(3)
	var rules []string
	for range 3 {
		once := sync.OnceFunc(asked.Done)
		p := publish(t, func(w http.ResponseWriter, _ *http.Request) {
			once()
			asked.Wait()
			fmt.Fprintln(w, one)
		})
		rules = append(rules, `{"deny":["url","`+p.URL+`"]}`)
	}
	h, unload := handler(t, `{"rules":[`+strings.Join(rules, ",")+`]}`)
	if got := h.rules.judge(addr(one)); got.allow {
		t.Error("the lists are not loaded")
	}
	unload()
	bad := publish(t, status(http.StatusNotFound))
	good := publish(t, textAnswer(two))
	_, _, err := tryProvision[*Handler](t, "layer4.handlers.acl",
		`{"rules":[{"allow":["url","`+good.URL+`"]},{"allow":["url","`+bad.URL+`"]}]}`)
	if want := "allow url " + bad.URL + ": the server answered 404 Not Found, expected 200 OK"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}
