// Package adminapi is what Portgate's endpoints of Caddy's admin API have in common: how a body is read, how an answer is
// written, and how errors look.
package adminapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// maxBody bounds what a request may send: a list of as many entries as there may be, each with a reason.
const maxBody = 64 << 20

// Decode reads a JSON object from the body into the struct that v points to, as [caddyfile.UnmarshalJSON] does. An empty
// body leaves v as it is. The error has the status 400; of a body that is no object it shows example, one that is.
func Decode(r *http.Request, v any, example string) error {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return Error(http.StatusBadRequest, "body: %w", err)
	}
	if body = bytes.TrimSpace(body); len(body) == 0 {
		return nil
	}
	if body[0] != '{' || !json.Valid(body) { // it may be too long to be quoted
		return Error(http.StatusBadRequest, "body: expected a JSON object, such as %s", example)
	}
	if err := caddyfile.UnmarshalJSON(body, v); err != nil {
		return Error(http.StatusBadRequest, "%w", err)
	}
	return nil
}

// Answer writes v as JSON.
func Answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// AnswerEach writes a list as JSON, each element when it comes, so that a long one is never in memory as a whole.
func AnswerEach[T any](w http.ResponseWriter, all iter.Seq[T]) error {
	w.Header().Set("Content-Type", "application/json")
	encoder, before := json.NewEncoder(w), "["
	for one := range all {
		if _, err := io.WriteString(w, before); err != nil {
			return err
		}
		if err := encoder.Encode(one); err != nil {
			return err
		}
		before = ","
	}
	if before == "[" {
		before = "[]\n"
	} else {
		before = "]\n"
	}
	_, err := io.WriteString(w, before)
	return err
}

// Parameters returns an error with the status 400 unless the query has no other parameters than these.
func Parameters(query url.Values, known ...string) error {
	for _, name := range slices.Sorted(maps.Keys(query)) {
		if slices.Contains(known, name) {
			continue
		}
		if len(known) == 0 {
			return Error(http.StatusBadRequest, "unknown parameter %q: expected none", name)
		}
		return Error(http.StatusBadRequest, "unknown parameter %q: expected one of %s", name, strings.Join(known, ", "))
	}
	return nil
}

// Error returns an error with an HTTP status.
func Error(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// Method returns the error 405 unless the request has one of the methods.
func Method(r *http.Request, allowed ...string) error {
	if slices.Contains(allowed, r.Method) {
		return nil
	}
	expected := allowed[len(allowed)-1]
	if before := allowed[:len(allowed)-1]; len(before) > 0 {
		expected = strings.Join(before, ", ") + " or " + expected
	}
	return Error(http.StatusMethodNotAllowed, "method %s: expected %s", r.Method, expected)
}

// Count returns the query parameter as a whole number between lo and hi, and preset where it is not given. The error
// has the status 400. It serves what bounds an answer, such as ?top= and ?limit=.
func Count(query url.Values, name string, lo, hi, preset int) (int, error) {
	text := query.Get(name)
	if text == "" {
		return preset, nil
	}
	n, err := caddyfile.ParseCount(text, lo, hi)
	if err != nil {
		return 0, Error(http.StatusBadRequest, "%s: %w", name, err)
	}
	return n, nil
}
