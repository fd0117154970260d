package caddyfile

import (
	"cmp"
	"slices"
	"strings"
)

// maxGuessed bounds the words that something else is suggested for: comparing takes time with their length.
const maxGuessed = 512

// Nearest returns the words that may have been meant where given is none of them: the nearest ones, at most so many, the best first. Those that it
// is a part of, or that are a part of it, come before others.
func Nearest(given string, known []string, most int) []string {
	if len(given) > maxGuessed {
		return nil
	}
	type guess struct {
		word     string
		apart    int // 1 where neither is a part of the other
		distance int
	}
	guesses := make([]guess, 0, len(known))
	for _, word := range known {
		if len(word) > maxGuessed {
			continue
		}
		g := guess{word, 1, Distance(given, word)}
		if given != "" && strings.Contains(word, given) || word != "" && strings.Contains(given, word) {
			g.apart = 0
		}
		guesses = append(guesses, g)
	}
	slices.SortFunc(guesses, func(a, b guess) int {
		return cmp.Or(cmp.Compare(a.apart, b.apart), cmp.Compare(a.distance, b.distance), strings.Compare(a.word, b.word))
	})
	nearest := make([]string, 0, most)
	for _, g := range guesses[:min(most, len(guesses))] {
		nearest = append(nearest, g.word)
	}
	return nearest
}

// Distance is how many letters have to be added, taken away, replaced or swapped with the next one to make b of a (optimal string
// alignment).
func Distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
