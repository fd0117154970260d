package forward

import (
	"strings"
	"testing"
)

// What is wrong with a URL is said without what is secret in it.
func TestURLErrorsHaveNoSecrets(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"ftp://user:s3cret@127.0.0.1/list?token=s3cret",
		"http://user:s3cret@127.0.0.1:port/list",
		"http://user:s3cret%zz@127.0.0.1/list",
		"http://user:s3cret@s3cret@/#s3cret",
		"ftp://user:s3cret?@127.0.0.1/list",
		"127.0.0.1/list?mail=a@b&token=s3cret",
		"user:s3cret@127.0.0.1/list?token=s3cret",
	} {
		_, err := parseListURL(s)
		if err == nil {
			t.Errorf("%q is taken", s)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: the error has the secret: %v", s, err)
		}
	}
}
