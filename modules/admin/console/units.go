package console

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// size shows bytes in at most 6 columns, with the units that configs have.
func size(n float64) string {
	if n < 999.5 {
		return fmt.Sprintf("%.0fB", max(n, 0))
	}
	for _, unit := range []string{"KB", "MB", "GB", "TB", "PB"} {
		n /= 1000
		switch {
		case n < 9.995:
			return fmt.Sprintf("%.2f%s", n, unit)
		case n < 99.95:
			return fmt.Sprintf("%.1f%s", n, unit)
		case n < 999.5 || unit == "PB":
			return fmt.Sprintf("%.0f%s", n, unit)
		}
	}
	return ""
}

// rate shows bytes a second, and "-" where they are not known.
func rate(n *int64) string {
	if n == nil {
		return "-"
	}
	return size(float64(*n))
}

// span shows seconds in at most 6 columns.
func span(seconds float64) string {
	switch {
	case math.IsNaN(seconds) || seconds < 0:
		return "-"
	case seconds < 9.95:
		return fmt.Sprintf("%.1fs", seconds)
	case seconds < 59.5:
		return fmt.Sprintf("%.0fs", seconds)
	case seconds < 3599.5:
		n := int(math.Round(seconds))
		return fmt.Sprintf("%dm%02ds", n/60, n%60)
	}
	whole := int(math.Round(min(seconds, math.MaxInt32)))
	if whole < 24*3600 {
		return fmt.Sprintf("%dh%02dm", whole/3600, whole/60%60)
	}
	hours := whole / 3600
	if hours >= 100*24 {
		return fmt.Sprintf("%dd", hours/24)
	}
	return fmt.Sprintf("%dd%02dh", hours/24, hours%24)
}

// count shows a whole number with a comma behind each thousand.
func count(n int64) string {
	digits := strconv.FormatInt(n, 10)
	from := len(digits) % 3
	if n < 0 {
		from = (len(digits)-1)%3 + 1
	}
	shown := digits[:from]
	for ; from < len(digits); from += 3 {
		if shown != "" && shown != "-" {
			shown += ","
		}
		shown += digits[from : from+3]
	}
	return shown
}

// perSecond shows a rate of events.
func perSecond(n float64) string {
	if n < 9.95 && n != 0 {
		return fmt.Sprintf("%.1f/s", n)
	}
	return count(int64(math.Round(n))) + "/s"
}

// when shows a time as the operator's clock does.
func when(at *time.Time) string {
	if at == nil || at.IsZero() {
		return "-"
	}
	return at.Local().Format(time.RFC3339)
}
