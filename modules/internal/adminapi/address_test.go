package adminapi

import (
	"strings"
	"testing"
)

func TestAddress(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"localhost:2501":            "localhost:2501",
		"localhost:2501/":           "localhost:2501",
		":2501":                     "localhost:2501",
		"[::1]:2501":                "[::1]:2501",
		"tcp/localhost:2501":        "tcp/localhost:2501",
		"http://localhost:2501":     "localhost:2501",
		"HTTP://localhost:2501/":    "localhost:2501",
		"http://[::1]:2501":         "[::1]:2501",
		"http://:2501":              "localhost:2501",
		"unix//run/caddy.sock":      "unix//run/caddy.sock",
		"unix/caddy.sock":           "unix/caddy.sock",
		"unix/@caddy":               "unix/@caddy",
		"unix//run/caddy.sock|0660": "unix//run/caddy.sock|0660",
	} {
		if got, err := Address(given); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", given, got, err, want)
		}
	}
	for given, want := range map[string]string{
		"":                              "such as localhost:2019",
		"localhost":                     "such as localhost:2019",
		"2501":                          "such as localhost:2019",
		"localhost:":                    "such as localhost:2019",
		"localhost:0":                   "such as localhost:2019",
		"localhost:x":                   "such as localhost:2019",
		"localhost:70000":               "such as localhost:2019",
		"localhost:1-2":                 "such as localhost:2019",
		"::1:2501":                      "such as localhost:2019",
		"http://localhost":              "such as localhost:2019",
		"http://localhost:2501/config/": "nothing behind it",
		"localhost:2501/config":         "nothing behind it",
		"http://me@localhost:2501":      "such as localhost:2019",
		"http://localhost:2501?x=1":     "such as localhost:2019",
		"https://localhost:2501":        "does not speak TLS",
		"ftp://localhost:2501":          "such as localhost:2019",
		"http:/localhost:2501":          "nothing behind it",
		"udp/localhost:2501":            "such as localhost:2019",
		"unix/":                         "the path of a socket",
		"unix//run/":                    "the path of a socket",
		"unix:/run/caddy.sock":          "such as localhost:2019",
		"unix:///run/caddy.sock":        "such as localhost:2019",
		"/run/caddy.sock":               "unix//run/caddy.sock",
	} {
		if got, err := Address(given); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want an error with %q", given, got, err, want)
		}
	}
}
