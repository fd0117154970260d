package acl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/fetch"
)

const (
	// defaultTimeout is how long a server may be silent, unless the config says otherwise.
	defaultTimeout = 30 * time.Second
	minTimeout     = time.Second
	// fetchLimit bounds one request as a whole: a list of the size that is allowed takes so long at 1 MBit/s.
	fetchLimit = 10 * time.Minute
	// firstTimeout and firstLimit replace them while a config waits for a list to be loaded.
	firstTimeout = 10 * time.Second
	firstLimit   = 30 * time.Second
)

var feedClient = fetch.NewClient()

// fetch asks the server for the list, unless it is still the one that is in use. The server may be silent for the timeout,
// and the limit is for all of it.
func (f *feed) fetch(ctx context.Context, timeout, limit time.Duration) error {
	request := fetch.Request{
		URL: f.url, ETag: f.have.ETag, LastModified: f.have.LastModified, Gzip: true, Silence: timeout, Limit: limit, What: "list",
	}
	return request.Do(ctx, f.client, func(resp *http.Response, from io.Reader) error { return f.answer(ctx, resp, from) })
}

// answer takes over what the server has sent, if that is a list.
func (f *feed) answer(ctx context.Context, resp *http.Response, from io.Reader) error {
	switch {
	case resp.StatusCode == http.StatusNotModified && f.have.ETag+f.have.LastModified != "":
		f.unchanged(ctx)
		return nil
	case resp.StatusCode != http.StatusOK:
		return fetch.StatusOf(resp)
	}
	encoding := strings.ToLower(resp.Header.Get("Content-Encoding"))
	if strings.Trim(encoding, " ") != "" && encoding != "identity" && encoding != "gzip" && encoding != "x-gzip" {
		return fmt.Errorf("content-encoding: %.32q: expected gzip or none", encoding)
	}
	var body bytes.Buffer
	set, report, err := ipset.Read(io.TeeReader(from, &body), f.hostBits)
	if err == nil && body.Len() == 0 {
		err = errors.New("the server sent nothing: expected a list, if only of comments")
	}
	if err != nil {
		return err
	}
	f.taken(ctx, resp.Header, body.Bytes(), set, report)
	return nil
}
