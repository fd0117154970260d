package fetch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Whatever a server redirects to, the error has nothing of it: there may be a key in it.
func TestErrorsOfRedirectsHaveNoSecrets(t *testing.T) {
	t.Parallel()
	for _, location := range []string{
		"http://user:s3cret@[::bad/", "http://user:s3cret%zz@127.0.0.1/", "/list?a=%zz&key=s3cret\x7f", "http://127.0.0.1:port-s3cret/", "s3cret:/list",
		"file:///s3cret", "http:///list?key=s3cret", "http://user:s3cret@127.0.0.1:1/list?key=s3cret",
	} {
		for _, status := range []int{http.StatusFound, http.StatusPermanentRedirect} {
			t.Run(fmt.Sprintf("%q %d", location, status), func(t *testing.T) {
				t.Parallel()
				web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Location", location)
					w.WriteHeader(status)
				}))
				defer web.Close()
				request := Request{URL: web.URL, Silence: time.Minute, Limit: time.Minute, What: "list"}
				err := request.Do(t.Context(), NewClient(), func(resp *http.Response, _ io.Reader) error {
					return StatusOf(resp)
				})
				if err == nil || strings.Contains(err.Error(), "s3cret") && location != "s3cret:/list" { // a scheme is no secret
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// What is wrong with the address of a proxy is said without its password, and one that is right is used.
func TestProxy(t *testing.T) {
	t.Parallel()
	right := &url.URL{Scheme: "http", Host: "proxy.test:3128"}
	for _, c := range []struct {
		at  *url.URL
		err error
	}{{right, nil}, {nil, nil}, {nil, errors.New(`invalid proxy address "http://user:s3cret@:x": it is wrong`)}} {
		got, err := proxyOf(nil, func(*http.Request) (*url.URL, error) { return c.at, c.err })
		if got != c.at || (err == nil) != (c.err == nil) || err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
}

// What a server sends that is not HTTP is in no error. One that only hangs up is told as that.
func TestErrorsOfAnswersHaveNoSecrets(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"s3cret\r\n\r\n":                                       "the answer of the server is not HTTP",
		"HTTP/1.1 s3cret OK\r\n\r\n":                           "the answer of the server is not HTTP",
		"HTTP/1.1 200 OK\r\nSet-Cookie s3cret\r\n\r\n":         "the answer of the server is not HTTP",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: s3cret\r\n\r\n": "the answer of the server is not HTTP",
		"HTTP/1.1 200 OK\r\nContent-Length: s3cret\r\n\r\n":    "the answer of the server is not HTTP",
		"":                    "EOF",
		"HTTP/1.1 200 OK\r\n": "unexpected EOF",
	} {
		t.Run(fmt.Sprintf("%q", answer), func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			defer serving.Wait()
			defer ln.Close()
			serving.Go(func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = http.ReadRequest(bufio.NewReader(conn))
					_, _ = io.WriteString(conn, answer)
					_ = conn.Close()
				}
			})
			request := Request{URL: "http://" + ln.Addr().String(), Silence: time.Minute, Limit: time.Minute, What: "list"}
			err = request.Do(t.Context(), NewClient(), func(*http.Response, io.Reader) error { return nil })
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}
