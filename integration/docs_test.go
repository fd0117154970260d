package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// block is a block of code in a page of the documentation, with the language that it names.
type block struct{ language, code string }

var fence = regexp.MustCompile("(?ms)^( *)```([a-z -]+)\n(.*?)^ *```$")

// blocksOf returns the code blocks of a page, without the indentation of those in a list.
func blocksOf(t *testing.T, page string) (blocks []block) {
	t.Helper()
	data, err := os.ReadFile(page)
	must(t, err)
	for _, found := range fence.FindAllStringSubmatch(string(data), -1) {
		blocks = append(blocks, block{found[2], regexp.MustCompile(`(?m)^`+found[1]).ReplaceAllString(found[3], "")})
	}
	return blocks
}

// pagesOfDocs are the pages whose code blocks are tested.
func pagesOfDocs(t *testing.T) []string {
	t.Helper()
	pages := []string{"../README.md"}
	for _, pattern := range []string{"../docs/*.md", "../docs/*/*.md"} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		pages = append(pages, found...)
	}
	return pages
}

// wholeCaddyfile puts a handler or a server of the layer4 app where it belongs, and leaves a whole Caddyfile as it is.
func wholeCaddyfile(code string) string {
	switch first := strings.Fields(regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(code, ""))[0]; {
	case strings.HasPrefix(first, "gate+"):
		return "{\n\tlayer4 {\n" + code + "}\n}\n"
	case first == "acl", first == "rate_limit", first == "forward", first == "accept_proxy":
		return wholeCaddyfile("gate+tcp/127.0.0.1:1 {\nroute {\n" + code + "}\n}\n")
	}
	return code
}

// wholeJSON does the same for JSON. What is not a part of a config (an answer of the API, say) is no config: ok is false.
func wholeJSON(t *testing.T, code string) (whole string, ok bool) {
	t.Helper()
	if !json.Valid([]byte(code)) {
		t.Fatalf("invalid JSON:\n%s", code)
	}
	var part map[string]any
	if json.Unmarshal([]byte(code), &part) != nil { // a list
		return "", false
	}
	if _, found := part["apps"]; found {
		return code, true
	}
	if _, found := part["handler"]; !found {
		return "", false
	}
	data, err := json.Marshal(gate.Layer4(gate.Listen("127.0.0.1:1", part)))
	must(t, err)
	return string(data), true
}

// commandFor returns the arguments that check a block which is a config, or nil if it is none.
func commandFor(t *testing.T, b block) []string {
	t.Helper()
	switch b.language {
	case "caddyfile":
		return []string{"adapt", "--validate", "--adapter", "caddyfile", "--config", writeFile(t, "Caddyfile", wholeCaddyfile(b.code))}
	case "caddyfile needs-files":
		return []string{"adapt", "--adapter", "caddyfile", "--config", writeFile(t, "Caddyfile", wholeCaddyfile(b.code))}
	case "json":
		if whole, ok := wholeJSON(t, b.code); ok {
			return []string{"validate", "--config", writeFile(t, "config.json", whole)}
		}
	case "json needs-files":
		wholeJSON(t, b.code)
	}
	return nil
}

// Every config in the documentation can be loaded. Those that name files which only the reader has can be adapted.
func TestConfigsInDocs(t *testing.T) {
	t.Parallel()
	configs := 0
	for _, page := range pagesOfDocs(t) {
		for i, b := range blocksOf(t, page) {
			args := commandFor(t, b)
			if args == nil {
				continue
			}
			configs++
			t.Run(fmt.Sprintf("%s block %d", filepath.Base(page), i+1), func(t *testing.T) {
				t.Parallel()
				if _, stderr, code := gate.Run(t, gate.Plain, args...); code != 0 {
					t.Errorf("%s: exit code %d: %s\n%s", page, code, messages(stderr), b.code)
				}
			})
		}
	}
	if configs < 10 {
		t.Errorf("found %d configs: the search is broken", configs)
	}
}

// A guide begins with the example of its name, as a test runs it.
func TestGuidesShowTheirExample(t *testing.T) {
	t.Parallel()
	guides, err := filepath.Glob("../docs/guides/*.md")
	if err != nil || len(guides) == 0 {
		t.Fatalf("no guides (%v)", err)
	}
	for _, guide := range guides {
		example := strings.TrimSuffix(filepath.Base(guide), ".md") + ".Caddyfile"
		want, err := os.ReadFile(filepath.Join("../examples", example))
		must(t, err)
		shown := false
		for _, b := range blocksOf(t, guide) {
			if b.language == "caddyfile" && !shown {
				if shown = true; b.code != string(want) {
					t.Errorf("the first config of %s is not examples/%s", guide, example)
				}
			}
		}
		if !shown {
			t.Errorf("%s shows no config", guide)
		}
	}
}

var (
	namedExample = regexp.MustCompile(`examples/[a-z0-9-]+\.[A-Za-z]+`)
	subcommand   = regexp.MustCompile(`(?m)^(?:bin/)?caddy ([a-z-]+)`)
)

// What a page has its reader type is there: the examples, and the commands of the binary.
func TestCommandsInDocs(t *testing.T) {
	t.Parallel()
	help, _, code := gate.Run(t, gate.Plain, "help")
	if code != 0 {
		t.Fatalf("caddy help: exit code %d", code)
	}
	found := 0
	for _, page := range pagesOfDocs(t) {
		for _, b := range blocksOf(t, page) {
			if b.language != "sh" {
				continue
			}
			for _, example := range namedExample.FindAllString(b.code, -1) {
				found++
				if _, err := os.Stat(filepath.Join("..", example)); err != nil {
					t.Errorf("%s: %v", page, err)
				}
			}
			for _, command := range subcommand.FindAllStringSubmatch(b.code, -1) {
				found++
				if !regexp.MustCompile(`(?m)^  ` + command[1] + ` `).MatchString(help) {
					t.Errorf("%s: the binary has no command %q", page, command[1])
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("found %d commands: the search is broken", found)
	}
}
