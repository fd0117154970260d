package bulk

import (
	"encoding/base64"
	"net/url"
	"strings"
)

// shortestSecret keeps a password of a letter from taking that letter out of all texts.
const shortestSecret = 4

const (
	// longestText is how much an error has of a text that a server sends.
	longestText = 200
	// longestError bounds the text of an error: net/http quotes what a server sends that is no HTTP.
	longestError = 1000
)

// withoutSecrets returns an error whose text has no credentials.
func (c *Client) withoutSecrets(err error) error {
	if err == nil {
		return nil
	}
	text := shortened(c.hide(err.Error()), longestError)
	if text == err.Error() {
		return err
	}
	return &told{text, err}
}

// shown returns what a log may have of a text that a server sends.
func (c *Client) shown(text string) string { return shortened(c.hide(text), longestText) }

// hide takes out credentials. The server was sent them, and what it answers may repeat them.
func (c *Client) hide(text string) string {
	for _, secret := range c.secrets() {
		if len(secret) >= shortestSecret {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	return text
}

func shortened(text string, most int) string {
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}

// secrets returns what of the requests is secret, the longest of those that contain each other first.
func (c *Client) secrets() (all []string) {
	if address, err := url.Parse(c.URL); err == nil {
		all = append(all, address.RawQuery)
	}
	_, credentials, _ := strings.Cut(c.Authorization, " ")
	all = append(all, credentials)
	// An API key is base64, too, of an id and a key.
	if plain, err := base64.StdEncoding.DecodeString(credentials); err == nil {
		_, password, _ := strings.Cut(string(plain), ":")
		all = append(all, string(plain), password)
	}
	return all
}

// told is an error with another text.
type told struct {
	text string
	err  error
}

func (t *told) Error() string { return t.text }

func (t *told) Unwrap() error { return t.err }
