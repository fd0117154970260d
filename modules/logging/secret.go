package logging

import (
	"encoding/json"
	"errors"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// Secret is a password or a key, or a placeholder of the environment or of a file, such as {env.LOG_KEY} or {file./run/secrets/log-key}. No
// error and no log has it.
type Secret string

// UnmarshalJSON decodes a string. Its error does not quote what there is instead.
func (s *Secret) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, (*string)(s)) != nil {
		return errors.New("expected a string")
	}
	return nil
}

// value returns the secret with placeholders replaced.
func (s Secret) value() (string, error) {
	value, err := caddy.NewReplacer().ReplaceOrErr(string(s), true, true)
	if err != nil {
		return "", errors.New("expected a secret, or a placeholder of one such as {env.LOG_KEY} that is set")
	}
	value = strings.TrimRight(value, "\r\n") // of a file
	if strings.ContainsFunc(value, unicode.IsControl) {
		return "", errors.New("expected a secret without control characters")
	}
	return value, nil
}

// secretOption is an option whose last value is a secret, so that errors do not quote its values.
func secretOption(name, expected string, set func(args []string), count int) caddyfile.Option {
	return caddyfile.Option{Name: name, Max: -1, Set: func(args []string) error {
		if len(args) != count {
			return errors.New("expected " + expected)
		}
		set(args)
		return nil
	}}
}
