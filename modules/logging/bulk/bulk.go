// Package bulk sends log entries with the bulk API of Elasticsearch, which OpenSearch, VictoriaLogs and others have too.
package bulk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

// Client sends batches. One goroutine uses it.
type Client struct {
	// HTTP makes the requests. It must not follow redirects, which would lead credentials elsewhere. Required.
	HTTP *http.Client
	// URL is that of the bulk API, such as https://localhost:9200/_bulk. Required.
	URL string
	// Authorization is the header of that name; empty for none.
	Authorization string
	// Index is the data stream, the index or the alias that entries go to. Required.
	Index string
	// IDs, with the number of an entry behind it, is the entry's id. It is unique for each queue. With it an entry that is sent again because an
	// answer was lost does not get in twice.
	IDs string

	body bytes.Buffer
}

// Send implements [delivery.Sender].
func (c *Client) Send(ctx context.Context, batch []delivery.Entry) delivery.Result {
	r := c.send(ctx, batch)
	r.Err = c.withoutSecrets(r.Err)
	return r
}

func (c *Client) send(ctx context.Context, batch []delivery.Entry) delivery.Result {
	if err := c.write(batch); err != nil {
		return delivery.Result{Rejected: len(batch), Err: err}
	}
	response, err := c.post(ctx)
	if err != nil {
		return delivery.Result{Retry: batch, Err: err}
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK, http.StatusCreated:
		return c.items(response.Body, batch)
	case http.StatusRequestEntityTooLarge:
		response.Body.Close() // each half may be too large in turn, and would need one more connection
		return c.halves(ctx, batch)
	case http.StatusBadRequest:
		return delivery.Result{Rejected: len(batch), Err: c.refused(response)}
	}
	// 429 and 5xx go by. What is wrong with credentials or the URL an operator may mend, so entries wait for that as well.
	return delivery.Result{Retry: batch, Err: c.refused(response), After: retryAfter(response)}
}

// write makes the body of a request: an action and the entry's fields for each, a line each.
func (c *Client) write(batch []delivery.Entry) error {
	index, err := json.Marshal(c.Index)
	if err != nil {
		return err
	}
	c.body.Reset()
	for i := range batch {
		fmt.Fprintf(&c.body, `{"create":{"_index":%s,"_id":"%s%d"}}`+"\n", index, c.IDs, batch[i].ID)
		if err := writeDocument(&c.body, &batch[i]); err != nil {
			return err
		}
		c.body.WriteByte('\n')
	}
	return nil
}

// writeDocument writes an entry in one line. A data stream wants the field @timestamp, which takes the place of ts.
func writeDocument(to *bytes.Buffer, e *delivery.Entry) error {
	object := e.Object()
	t, field, ok := delivery.TimeField(object)
	if ok && string(field.Name) == "@timestamp" {
		return json.Compact(to, object)
	}
	if !ok {
		t = e.Arrived
	}
	stamped := make([]byte, 0, len(object)+48)
	stamped = append(stamped, `{"@timestamp":"`...)
	stamped = t.UTC().AppendFormat(stamped, time.RFC3339Nano)
	stamped = append(stamped, '"')
	for f := range delivery.Fields(object) {
		if ok && f.Start == field.Start || string(f.Name) == "@timestamp" {
			continue // one that is no time
		}
		stamped = append(stamped, ',')
		stamped = append(stamped, object[f.Start:f.End]...)
	}
	return json.Compact(to, append(stamped, '}'))
}

func (c *Client) post(ctx context.Context) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, bytes.NewReader(c.body.Bytes()))
	if err != nil {
		return nil, withoutURL(err)
	}
	request.Header.Set("Content-Type", "application/x-ndjson")
	if c.Authorization != "" {
		request.Header.Set("Authorization", c.Authorization)
	}
	response, err := c.HTTP.Do(request)
	return response, withoutURL(err)
}

// withoutURL removes the URL, whose query may have a secret.
func withoutURL(err error) error {
	if with := (*url.Error)(nil); errors.As(err, &with) {
		return with.Err
	}
	return err
}

// halves sends a batch that is too large in two parts.
func (c *Client) halves(ctx context.Context, batch []delivery.Entry) delivery.Result {
	if len(batch) == 1 {
		return delivery.Result{Rejected: 1, Err: errors.New("an entry is larger than the collector takes (status 413)")}
	}
	first := c.send(ctx, batch[:len(batch)/2])
	second := c.send(ctx, batch[len(batch)/2:])
	both := delivery.Result{
		Rejected: first.Rejected + second.Rejected,
		Retry:    append(first.Retry[:len(first.Retry):len(first.Retry)], second.Retry...),
		Err:      first.Err,
		After:    max(first.After, second.After),
	}
	if both.Err == nil {
		both.Err = second.Err
	}
	return both
}

// largestError is how much is read of an answer that is no success.
const largestError = 4 << 10

// refused says what status an answer has, and what Elasticsearch says of it.
func (c *Client) refused(response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, largestError))
	var answer struct{ Error struct{ Type, Reason string } }
	if json.Unmarshal(text, &answer) == nil && answer.Error.Type != "" {
		return fmt.Errorf("status %d: %s: %s", response.StatusCode, c.shown(answer.Error.Type), c.shown(answer.Error.Reason))
	}
	return fmt.Errorf("status %d", response.StatusCode)
}

// retryAfter returns what the header of that name says, in either form.
func retryAfter(response *http.Response) time.Duration {
	value := response.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 && seconds < 1e6 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// Close implements [delivery.Sender].
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// Interface guards
var _ delivery.Sender = (*Client)(nil)
