//go:build race

package relay

// raceDetector makes tests that move much move less.
const raceDetector = true
