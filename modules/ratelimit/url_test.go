package ratelimit

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket/redis"
)

// oddest has all characters that mean something in a URL.
const oddest = `a+/=@#%?:%41}{&;,$!*'()[]|\"^ä `

// Values of placeholders are what they are, whatever characters they have.
func TestPasswordsFromPlaceholders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(oddest+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GATE_PASSWORD", oddest)
	t.Setenv("GATE_USER", "us:er@")
	t.Setenv("GATE_HOST", "[::1]:7000")
	t.Setenv("GATE_URL", "rediss://user:"+url.QueryEscape("p/w")+"@127.0.0.1:7001/3?skip_verify=true")
	for _, c := range []struct{ url, user, password, address, sentinel string }{
		{"redis://:{env.GATE_PASSWORD}@localhost:6380/0", "", oddest, "localhost:6380", ""},
		{"rediss://user:{file." + file + "}@redis.example", "user", oddest, "redis.example:6379", ""},
		{"redis://{env.GATE_USER}:{env.GATE_PASSWORD}@{env.GATE_HOST}/1", "us:er@", oddest, "[::1]:7000", ""},
		{"redis://u:pre-{env.GATE_USER}%41@a:1", "u", "pre-us:er@A", "a:1", ""},
		{"redis://a:1?master_set=main&sentinel_user={env.GATE_USER}&sentinel_password={env.GATE_PASSWORD}", "", "", "a:1", oddest},
		{"unix://u:{env.GATE_PASSWORD}@/run/redis.sock", "u", oddest, "/run/redis.sock", ""},
		{"{env.GATE_URL}", "user", "p/w", "127.0.0.1:7001", ""},
	} {
		expanded, err := (&Store{URL: c.url}).expand()
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		got, err := redis.Parse(expanded)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		if got.Username != c.user || got.Password != c.password || got.InitAddress[0] != c.address || got.Sentinel.Password != c.sentinel {
			t.Errorf("%s: user %q, password %q, address %q, sentinel's password %q", c.url, got.Username, got.Password, got.InitAddress[0], got.Sentinel.Password)
		}
	}
}

// A secret that is not there is a mistake, and no empty password.
func TestPlaceholdersWithoutAValue(t *testing.T) {
	t.Parallel()
	for _, missing := range []string{"env.GATE_NO_SUCH_VARIABLE", "file./no/such/file", "no.such.placeholder"} {
		_, err := (&Store{URL: "redis://:{" + missing + "}@localhost"}).expand()
		if want := "{" + missing + "}: expected a value, but it is unknown or empty"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// No error about a config has a password, wherever it was written by mistake.
func TestErrorsHaveNoPassword(t *testing.T) {
	t.Setenv("GATE_PASSWORD", "hidden")
	for _, config := range []string{
		`"store": {"type": "redis", "url": "redis://user:hidden@localhost/x"}`,
		`"store": {"type": "redis", "url": "redis://user:hidden%zz@localhost"}`,
		`"store": {"type": "redis", "url": "redis://user:hid#hidden@localhost"}`,
		`"store": {"type": "redis", "url": "redis://user:hid/hidden@localhost"}`,
		`"store": {"type": "redis", "url": "redis://user:hid?hidden@localhost"}`,
		`"store": {"type": "redis", "url": "redis://user:hidden"}`,
		`"store": {"type": "redis", "url": "user:hidden@localhost"}`,
		`"store": {"type": "redis", "url": "redis://user:{env.GATE_PASSWORD}@localhost/x"}`,
		`"store": {"type": "redis", "url": "redis://user:{env.GATE_PASSWORD}@localhost?tls=1"}`,
		`"store": {"type": "redis", "url": "redis://a:1?master_set=m&sentinel_passwort=hidden"}`,
		`"store": {"type": "redis", "url": ["redis://user:hidden@localhost"]}`,
		`"store": {"type": "redis://user:hidden@localhost"}`,
		`"store": "redis://user:hidden@localhost"`,
		`"store": ["redis", "redis://user:hid@hidden@localhost", "x"]`,
		`"on_limit": "redis://user:hidden@localhost"`,
	} {
		_, _, err := tryProvision(t, `{"connections": [{"rate": "1/s"}], `+config+`}`)
		if err == nil {
			t.Errorf("%s: no error", config)
		} else if strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: the error has the password: %v", config, err)
		}
	}
}
