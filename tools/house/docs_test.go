package house

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page is a Markdown file of the checkout.
type page struct {
	// text is without code.
	text string
	// anchors are what a link to a part of the page may name.
	anchors []string
	// languages are those of the code blocks.
	languages []string
}

var (
	heading    = regexp.MustCompile(`(?m)^#{1,6} +(.+)$`)
	link       = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	notAnchor  = regexp.MustCompile(`[^\p{L}\p{N}\-_ ]`)
)

// parsePage reads a page as GitHub shows it.
func parsePage(text string) page {
	var p page
	var plain strings.Builder
	fenced := false
	for line := range strings.Lines(text) {
		if language, found := strings.CutPrefix(strings.TrimSpace(line), "```"); found {
			if fenced = !fenced; fenced {
				p.languages = append(p.languages, language)
			}
			continue
		}
		if !fenced {
			plain.WriteString(line)
		}
	}
	for _, found := range heading.FindAllStringSubmatch(plain.String(), -1) {
		p.anchors = append(p.anchors, anchor(p.anchors, found[1]))
	}
	p.text = inlineCode.ReplaceAllString(plain.String(), "")
	return p
}

// anchor is the name that GitHub gives to a heading: in small letters, blanks as hyphens, no other punctuation, and numbered where it is taken.
func anchor(taken []string, title string) string {
	title = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(title, "$1")
	name := strings.ReplaceAll(notAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-")
	unique := name
	for i := 1; slices.Contains(taken, unique); i++ {
		unique = fmt.Sprintf("%s-%d", name, i)
	}
	return unique
}

// readPages reads the Markdown files of the checkout, by path.
func readPages(t *testing.T) map[string]page {
	t.Helper()
	pages := make(map[string]page)
	err := filepath.WalkDir(checkout, func(file string, entry fs.DirEntry, err error) error {
		switch name := entry.Name(); {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(name, ".") && name != ".." || name == "node_modules"):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".md"):
			return nil
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(checkout, file)
		pages[filepath.ToSlash(rel)] = parsePage(string(data))
		return err
	})
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages (%v)", len(pages), err)
	}
	return pages
}

// brokenLinks are the links of a page that lead to no file, or to no heading of a page.
func brokenLinks(pages map[string]page, from string) (broken []string) {
	for _, found := range link.FindAllStringSubmatch(pages[from].text, -1) {
		target := found[1]
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		file, fragment, _ := strings.Cut(target, "#")
		to := from
		if file != "" {
			to = path.Join(path.Dir(from), file)
		}
		known := pages[to].text != ""
		if !known {
			_, err := os.Stat(filepath.Join(checkout, filepath.FromSlash(to)))
			known = err == nil
		}
		if !known || fragment != "" && !slices.Contains(pages[to].anchors, fragment) {
			broken = append(broken, target)
		}
	}
	return broken
}

// TestLinksResolve holds that no page has a link to a file or a heading that is not there.
func TestLinksResolve(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for name := range pages {
		if broken := brokenLinks(pages, name); len(broken) > 0 {
			t.Errorf("%s: nothing is at %q", name, broken)
		}
	}

	pages["docs/x.md"] = parsePage("# A title\n## `b`: c, d\n# A title\n[1](#a-title) [2](#a-title-1) [3](#b-c-d) [4](../go.mod) [5](https://example.com)\n" +
		"```sh\n# no title\n[6](gone)\n```\n`[7](gone)` [8](#no-title) [9](gone.md) [10](network.md#gone)")
	if got, want := brokenLinks(pages, "docs/x.md"), []string{"#no-title", "gone.md", "network.md#gone"}; !slices.Equal(got, want) {
		t.Errorf("the test finds %q broken, want %q", got, want)
	}
}

// TestEveryPageIsInTheIndex holds that docs/README.md leads to every page of docs/.
func TestEveryPageIsInTheIndex(t *testing.T) {
	t.Parallel()
	const index = "docs/README.md"
	pages := readPages(t)
	var linked []string
	for _, found := range link.FindAllStringSubmatch(pages[index].text, -1) {
		file, _, _ := strings.Cut(found[1], "#")
		linked = append(linked, path.Join(path.Dir(index), file))
	}
	for name := range pages {
		if strings.HasPrefix(name, "docs/") && name != index && !slices.Contains(linked, name) {
			t.Errorf("%s does not lead to %s", index, name)
		}
	}
}

// TestCodeBlocksSayWhatTheyAre holds that each block of code in docs/ and README.md names its language. By it the integration tests know
// which blocks are configs, and load them.
func TestCodeBlocksSayWhatTheyAre(t *testing.T) {
	t.Parallel()
	known := []string{"caddyfile", "caddyfile needs-files", "json", "json needs-files", "sh", "text", "ini", "yaml"}
	for name, page := range readPages(t) {
		if name != "README.md" && !strings.HasPrefix(name, "docs/") {
			continue
		}
		for i, language := range page.languages {
			if !slices.Contains(known, language) {
				t.Errorf("%s: code block %d is of %q, want one of %q", name, i+1, language, known)
			}
		}
	}
}

var (
	namedMetric  = regexp.MustCompile("`(?:caddy_portgate_)([a-z_]+?)(?:_bucket|_sum|_count)?[`{ =\\[]")
	namedMessage = regexp.MustCompile("[Ll]ogger `(acl|network|rate_limit)` says `([^`]+)`")
)

// sourceOfModules returns the Go code of all modules without their tests.
func sourceOfModules(t *testing.T) string {
	t.Helper()
	var code strings.Builder
	err := filepath.WalkDir(filepath.Join(checkout, "modules"), func(file string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		data, err := os.ReadFile(file)
		code.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return code.String()
}

// TestNamedMetricsAndMessagesExist holds that a metric and a log message of Portgate which a page names are in the code.
func TestNamedMetricsAndMessagesExist(t *testing.T) {
	t.Parallel()
	code := sourceOfModules(t)
	found := 0
	for name := range readPages(t) {
		data, err := os.ReadFile(filepath.Join(checkout, filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		for _, pattern := range []*regexp.Regexp{namedMetric, namedMessage} {
			for _, named := range pattern.FindAllStringSubmatch(string(data), -1) {
				found++
				if text := named[len(named)-1]; !strings.Contains(code, `"`+text) {
					t.Errorf("%s names %q, which is not in the code", name, text)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("found %d metrics and messages: the search is broken", found)
	}
}

var reason = regexp.MustCompile(`[Rr]eason\w*\s+= "([a-z_]+)"`)

// TestReasonsAreDocumented holds that docs/observe.md explains each reason that a session may end with.
func TestReasonsAreDocumented(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(checkout, "docs", "observe.md"))
	if err != nil {
		t.Fatal(err)
	}
	reasons := reason.FindAllStringSubmatch(sourceOfModules(t), -1)
	for _, found := range reasons {
		if !strings.Contains(string(data), "`"+found[1]+"`") {
			t.Errorf("docs/observe.md does not explain the reason %q", found[1])
		}
	}
	if len(reasons) < 8 {
		t.Errorf("found %d reasons: the search is broken", len(reasons))
	}
}

// TestGroundIsDescribed holds that CONTRIBUTING.md says what each folder of the ground is for.
func TestGroundIsDescribed(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(checkout, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	folders, err := os.ReadDir(filepath.Join(checkout, "modules", "internal"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no folders (%v)", err)
	}
	for _, folder := range folders {
		if !strings.Contains(string(data), "`"+folder.Name()+"`") {
			t.Errorf("CONTRIBUTING.md does not say what modules/internal/%s is for", folder.Name())
		}
	}
}
