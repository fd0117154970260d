package adminapi

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// status returns the HTTP status of an error, 200 where there is none.
func status(err error) int {
	var api caddy.APIError
	if errors.As(err, &api) {
		return api.HTTPStatus
	}
	if err != nil {
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]struct {
		status int
		says   string
		name   string
	}{
		"":                      {status: 200, name: "before"},
		" \n":                   {status: 200, name: "before"},
		`{"name": "after"}`:     {status: 200, name: "after"},
		`[]`:                    {status: 400, says: `expected a JSON object, such as {"name": "x"}`},
		`{"name": "x"`:          {status: 400, says: "expected a JSON object"},
		`{"name": 1}`:           {status: 400, says: `name: "1": expected a string`},
		`{"nam": "x"}`:          {status: 400, says: `unknown option "nam": expected one of name`},
		`{"name": "a"} {"b":1}`: {status: 400, says: "expected a JSON object"},
	} {
		given := struct {
			Name string `json:"name"`
		}{"before"}
		r := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(body))
		err := Decode(r, &given, `{"name": "x"}`)
		if status(err) != want.status || err != nil && !strings.Contains(err.Error(), want.says) {
			t.Errorf("%q: %v, want status %d and %q", body, err, want.status, want.says)
		}
		if err == nil && given.Name != want.name {
			t.Errorf("%q: name %q, want %q", body, given.Name, want.name)
		}
	}
	long := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(`{"name":"`+strings.Repeat("a", maxBody)+`"}`))
	if err := Decode(long, new(struct{}), "{}"); status(err) != http.StatusBadRequest {
		t.Errorf("a body that is too long: %v", err)
	}
}

func TestMethod(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	if err := Method(r, http.MethodGet, http.MethodPost); err != nil {
		t.Error(err)
	}
	for want, allowed := range map[string][]string{
		"method POST: expected GET":                {"GET"},
		"method POST: expected GET or PUT":         {"GET", "PUT"},
		"method POST: expected GET, PUT or DELETE": {"GET", "PUT", "DELETE"},
	} {
		if err := Method(r, allowed...); status(err) != http.StatusMethodNotAllowed || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	query := url.Values{"top": {"7"}, "wrong": {"x"}, "large": {"11"}}
	for name, want := range map[string]int{"top": 7, "absent": 3} {
		if n, err := Count(query, name, 1, 10, 3); n != want || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	for _, name := range []string{"wrong", "large"} {
		if _, err := Count(query, name, 1, 10, 3); status(err) != http.StatusBadRequest || !strings.Contains(err.Error(), name+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	if err := Answer(w, []int{1}); err != nil || w.Body.String() != "[1]\n" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%v: %q, %v", err, w.Body, w.Header())
	}
}

// failing is a client that has gone after some bytes.
type failing struct {
	*httptest.ResponseRecorder
	left int
}

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errors.ErrUnsupported
	}
	return f.ResponseRecorder.Write(b)
}

func (f *failing) WriteString(s string) (int, error) { return f.Write([]byte(s)) }

func TestAnswerEach(t *testing.T) {
	t.Parallel()
	for want, all := range map[string][]int{"[]\n": nil, "[1\n]\n": {1}, "[1\n,2\n,3\n]\n": {1, 2, 3}} {
		w := httptest.NewRecorder()
		if err := AnswerEach(w, slices.Values(all)); err != nil || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%v: %q, %v", err, w.Body, w.Header())
		}
		for left := range len(want) {
			if err := AnswerEach(&failing{httptest.NewRecorder(), left}, slices.Values(all)); err == nil {
				t.Errorf("%q: no error where the client has gone after %d bytes", want, left)
			}
		}
	}
}

func TestParameters(t *testing.T) {
	t.Parallel()
	query := url.Values{"name": {"a"}, "limit": {"1"}}
	if err := Parameters(query, "name", "limit", "after"); err != nil {
		t.Error(err)
	}
	for want, known := range map[string][]string{
		`unknown parameter "limit": expected none`:               nil,
		`unknown parameter "limit": expected one of name, after`: {"name", "after"},
		`unknown parameter "name": expected one of limit, after`: {"limit", "after"},
	} {
		var api caddy.APIError
		if err := Parameters(query, known...); status(err) != http.StatusBadRequest || !errors.As(err, &api) || api.Err.Error() != want {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
