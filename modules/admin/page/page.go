// Package page is the status page: a document, a style sheet and scripts, all of them in the binary.
package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed index.html *.css *.js
var embedded embed.FS

// policy lets the page load its own script and style sheet, and ask where it comes from. No other page may frame it, and no script
// can make HTML of a text: what comes from the network is shown as what it is.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

const document = "index.html"

var kinds = map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}

// file is one that is served.
type file struct {
	kind, tag string // content type, and what tells this content from others
	content   []byte
}

// The page with buttons that change something, and without. What the document says is all in which they differ.
var (
	writable = load("writable")
	readOnly = load("read-only")
)

func load(mode string) map[string]file {
	files := make(map[string]file)
	all, err := embedded.ReadDir(".")
	for _, one := range all {
		name := one.Name()
		content, failed := embedded.ReadFile(name)
		err = errors.Join(err, failed)
		if name == document {
			content = bytes.Replace(content, []byte(`data-mode="writable"`), []byte(`data-mode="`+mode+`"`), 1)
			name = ""
		}
		sum := sha256.Sum256(content)
		files[name] = file{kinds[path.Ext(one.Name())], `"` + hex.EncodeToString(sum[:8]) + `"`, content}
	}
	if err != nil {
		panic(err) // the compiler has put them there
	}
	return files
}

// Serve answers with a file of the page by its name, of which "" is the page itself. It reports false, and answers nothing, where there is
// no such file. A page that may change nothing has no buttons for it.
func Serve(w http.ResponseWriter, r *http.Request, name string, mayChange bool) bool {
	files := readOnly
	if mayChange {
		files = writable
	}
	f, is := files[name]
	if !is {
		return false
	}
	Protect(w.Header())
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("Cache-Control", "no-cache") // ask each time: the next version may be another one
	w.Header().Set("Etag", f.tag)
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(f.content)))
	return true
}

// Protect has browsers keep an answer from other pages: none may frame it, load it as a script or an image, or share a window with it.
func Protect(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin") // Caddy's admin endpoint asks for it
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}
