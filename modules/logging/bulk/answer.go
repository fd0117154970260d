package bulk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// answer is what the bulk API says of each action, in the order of the request.
type answer struct {
	Errors *bool // required: an answer of something else does not have it
	Items  []map[string]outcome
}

type outcome struct {
	Status int
	Error  struct{ Type, Reason string }
}

// answerOf bounds what is read of an answer: some room for each entry.
func answerOf(entries int) int64 { return int64(entries)*4<<10 + 64<<10 }

// items reads an answer and tells of each entry whether it is in, is to be sent again, or is refused for good.
func (c *Client) items(body io.Reader, batch []delivery.Entry) delivery.Result {
	var a answer
	var r delivery.Result
	if err := json.NewDecoder(io.LimitReader(body, answerOf(len(batch)))).Decode(&a); err != nil {
		return delivery.Result{Retry: batch, Err: fmt.Errorf("the answer is none of the bulk API: %w", err)}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(body, largestError)) // so that the connection can be used again
	switch {
	case a.Errors == nil:
		return delivery.Result{Retry: batch, Err: errors.New(`the answer is none of the bulk API: it has no "errors"`)}
	case !*a.Errors && len(a.Items) == 0: // left out, because all is well
		return delivery.Result{}
	case len(a.Items) != len(batch):
		return delivery.Result{Retry: batch, Err: fmt.Errorf("the answer has %d items, expected one for each of the %d entries", len(a.Items), len(batch))}
	}
	for i := range a.Items {
		c.add(&r, a.Items[i], batch[i])
	}
	return r
}

// add adds an entry to the result of its batch.
func (c *Client) add(r *delivery.Result, item map[string]outcome, e delivery.Entry) {
	var o outcome
	for _, o = range item {
		break // there is one, named after the action
	}
	switch {
	case o.Status/100 == 2, o.Status == http.StatusConflict: // it got in before
		return
	case o.Status == http.StatusTooManyRequests, o.Status/100 == 5:
		r.Retry = append(r.Retry, e)
	default:
		r.Rejected++
	}
	if r.Err == nil {
		r.Err = fmt.Errorf("status %d: %s: %s", o.Status, c.shown(o.Error.Type), c.shown(o.Error.Reason))
	}
}
