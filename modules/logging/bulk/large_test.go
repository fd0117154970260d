package bulk

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// answers are of a server that takes one entry at a time. They know how many of them are open.
type answers struct{ open, most int }

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	all, err := readBulk(r.Body)
	if err != nil {
		return nil, err
	}
	a.open++
	a.most = max(a.most, a.open)
	status := http.StatusOK
	if len(all) > 1 {
		status = http.StatusRequestEntityTooLarge
	}
	return &http.Response{StatusCode: status, Header: make(http.Header), Body: &answerBody{strings.NewReader(`{"errors":false}`), a, false}}, nil
}

type answerBody struct {
	io.Reader
	of     *answers
	closed bool
}

func (b *answerBody) Close() error {
	if !b.closed {
		b.closed = true
		b.of.open--
	}
	return nil
}

// However often a batch is halved, one connection is enough.
func TestHalvesNeedOneConnection(t *testing.T) {
	t.Parallel()
	a := new(answers)
	c := &Client{HTTP: &http.Client{Transport: a}, URL: "http://collector/_bulk", Index: "gate", IDs: "x-"}
	lines := make([]string, 64)
	for i := range lines {
		lines[i] = `{"a":1}`
	}
	if r := c.Send(t.Context(), batch(lines...)); r.Rejected > 0 || len(r.Retry) > 0 {
		t.Errorf("%+v", r)
	}
	if a.most != 1 || a.open != 0 {
		t.Errorf("%d answers were open at a time, %d are", a.most, a.open)
	}
}
