package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// prometheusFolder has what operators copy.
const prometheusFolder = "../deploy/prometheus"

// alertNames returns the alerts of deploy/prometheus.
func alertNames(t testing.TB) (names []string) {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join(prometheusFolder, "rules.yml"))
	must(t, err)
	for _, found := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		names = append(names, found[1])
	}
	if len(names) < 10 {
		t.Fatalf("found only %q: the test is broken", names)
	}
	return names
}

// promtool finds config and rules sound, and each alert has a test that passes.
func TestPrometheusRules(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "--lint-fatal", "rules.yml"}, {"test", "rules", "rules.test.yml"}} {
		cmd := exec.Command(program(t, "promtool"), args...)
		cmd.Dir = prometheusFolder
		output(t, cmd)
	}
	tests, err := os.ReadFile(filepath.Join(prometheusFolder, "rules.test.yml"))
	must(t, err)
	for _, name := range alertNames(t) {
		if strings.Count(string(tests), "alertname: "+name+"\n") != 2 {
			t.Errorf("%s: expected a test in rules.test.yml that it is silent, and one that it fires", name)
		}
	}
}

// The link of each alert leads to a section of the docs.
func TestAlertsLinkToDocs(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile(filepath.Join(prometheusFolder, "rules.yml"))
	must(t, err)
	links := regexp.MustCompile(`runbook_url: https://github.com/portgate/caddy-portgate/blob/main/(docs/\w+\.md)#(\S+)`).FindAllStringSubmatch(string(rules), -1)
	if names := alertNames(t); len(links) != len(names) {
		t.Errorf("%d links for %d alerts", len(links), len(names))
	}
	for _, link := range links {
		page, err := os.ReadFile(filepath.Join("..", link[1]))
		must(t, err)
		heading := "### " + strings.ReplaceAll(link[2], "-", " ") + "\n"
		if !strings.Contains(strings.ToLower(string(page)), heading) {
			t.Errorf("%s has no section %q", link[1], link[2])
		}
	}
}
