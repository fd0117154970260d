package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
)

// place is what Redis adds to an error that a script has met: the script and the line, which differ where the error is the same.
var place = regexp.MustCompile(`( script: [0-9a-f]{40}, on @user_script:\d+\.?)|(Error running script \(call to f_[0-9a-f]{40}\): )|(@user_script:\s?\d+: ?)`)

// reason says what has failed, the same each time it fails in the same way, and without passwords.
func (s *Store) reason(err error) string {
	options := &s.client.options
	text := reasonOf(err, options.TLSConfig != nil)
	for _, secret := range []string{options.Password, options.Sentinel.Password} {
		if secret != "" { // which old servers repeat where they know no HELLO
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	if len(options.InitAddress) == 0 {
		return text
	}
	return strings.Join(options.InitAddress, ", ") + ": " + text
}

func reasonOf(err error, encrypted bool) string {
	var lookup *net.DNSError
	var operation *net.OpError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &lookup):
		return fmt.Sprintf("lookup of %q: %s", lookup.Name, lookup.Err)
	case isClosed(err):
		if encrypted {
			return "the server has closed the connection"
		}
		return "the server has closed the connection; one that expects TLS is written rediss://"
	case errors.As(err, &header):
		return "no answer in TLS; a server that does not expect it is written redis://"
	case isTimeout(err) && encrypted:
		return "no answer in time; one that does not expect TLS is written redis://"
	case isTimeout(err):
		return "no answer in time"
	case errors.As(err, &operation):
		without := *operation
		without.Source = nil // which has another port each time
		return without.Error()
	}
	return strings.TrimSpace(place.ReplaceAllString(err.Error(), ""))
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
