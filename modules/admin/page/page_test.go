package page

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, name string, mayChange bool, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/portgate/"+name, nil)
	if len(header) == 2 {
		r.Header.Set(header[0], header[1])
	}
	w := httptest.NewRecorder()
	if !Serve(w, r, name, mayChange) {
		t.Fatalf("%q is not there", name)
	}
	return w
}

// Whatever the document and the scripts name is there, comes from here, and all of it is less than 100 KB.
func TestPageIsWhole(t *testing.T) {
	t.Parallel()
	names := regexp.MustCompile(`(?:href|src|from) ?=? ?"(?:\./)?([\w.]+\.(?:css|js))"`)
	size, wanted := 0, map[string]bool{"": true}
	for again := true; again; {
		again = false
		for name, is := range wanted {
			if !is {
				continue
			}
			wanted[name], again = false, true
			answer := get(t, name, true)
			text := answer.Body.String()
			size += len(text)
			for _, found := range names.FindAllStringSubmatch(text, -1) {
				if _, known := wanted[found[1]]; !known {
					wanted[found[1]] = true
				}
			}
			if elsewhere := regexp.MustCompile(`https?://[^"]*`).FindAllString(text, -1); len(elsewhere) > 0 {
				for _, url := range elsewhere {
					if url != "http://www.w3.org/2000/svg" { // a name, which nobody asks
						t.Errorf("%s: %s", name, url)
					}
				}
			}
			if kind := answer.Header().Get("Content-Type"); !strings.HasPrefix(kind, "text/") || !strings.HasSuffix(kind, "charset=utf-8") {
				t.Errorf("%s: content type %q", name, kind)
			}
		}
	}
	if len(wanted) != len(writable) {
		t.Errorf("%d files are needed, and there are %d", len(wanted), len(writable))
	}
	if size > 100_000 {
		t.Errorf("%d bytes, want at most 100,000", size)
	}
}

// Nothing makes HTML of a text, which may be what a client of the gateway has written.
func TestTextsAreTexts(t *testing.T) {
	t.Parallel()
	dangerous := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser|\beval\b|new Function`)
	inline := regexp.MustCompile(`(?i)<style|<script(?: type="module")?>|\bstyle=|\bon\w+="`)
	for name := range writable {
		text := get(t, name, true).Body.String()
		if found := dangerous.FindString(text); found != "" {
			t.Errorf("%s: %s", name, found)
		}
		if found := inline.FindString(text); name == "" && found != "" {
			t.Errorf("the document has %s, which the policy forbids", found)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	for name := range writable {
		h := get(t, name, false).Header()
		policy := h.Get("Content-Security-Policy")
		for _, directive := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "require-trusted-types-for 'script'"} {
			if !strings.Contains(policy, directive) {
				t.Errorf("%s: %q has no %s", name, policy, directive)
			}
		}
		if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("%s: %q", name, policy)
		}
		for header, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-cache",
		} {
			if got := h.Get(header); got != want {
				t.Errorf("%s: %s is %q, want %q", name, header, got, want)
			}
		}
	}
}

// The document says whether it has buttons, and an answer that the browser has is not sent again.
func TestModesAndTags(t *testing.T) {
	t.Parallel()
	may, mayNot := get(t, "", true), get(t, "", false)
	if !strings.Contains(may.Body.String(), `data-mode="writable"`) || !strings.Contains(mayNot.Body.String(), `data-mode="read-only"`) {
		t.Error("the documents don't say what they are")
	}
	if may.Header().Get("Etag") == mayNot.Header().Get("Etag") {
		t.Error("both documents have the same tag")
	}
	if again := get(t, "", true, "If-None-Match", may.Header().Get("Etag")); again.Code != http.StatusNotModified || again.Body.Len() > 0 {
		t.Errorf("%d with %d bytes, want 304", again.Code, again.Body.Len())
	}
	for _, name := range []string{"index.html", "page.go", "../page.js", "x"} {
		if Serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), name, true) {
			t.Errorf("%q is there", name)
		}
	}
}
