package admin

import (
	"net/http"
	"strconv"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

const historyPath = "/portgate/history"

// history is what has happened in the last 15 minutes.
type history struct {
	points [points]point
	last   int64 // the interval of the last point
	at     time.Time
	totals session.Totals // at the last point
}

// point is what has happened in an interval. Bytes, sessions and refusals are per second.
type point struct {
	interval           int64 // since 1970
	up, down           float64
	begun              float64
	streams, datagrams int64
	refused            map[string]float64 // nil where there were none
}

// note is called at each look, and makes a point of it when one is due.
func (h *history) note(now time.Time, totals session.Totals, streams, datagrams int64, first bool) {
	interval := now.Unix() / int64(pointEvery/time.Second)
	if first {
		h.last, h.at, h.totals = interval, now, totals
		return
	}
	if interval <= h.last { // also where somebody has put the clock back
		if h.last-interval > points {
			h.last = interval
		}
		return
	}
	seconds := now.Sub(h.at).Seconds()
	p := point{
		interval: interval, streams: streams, datagrams: datagrams,
		up:    float64(totals.BytesUp-h.totals.BytesUp) / seconds,
		down:  float64(totals.BytesDown-h.totals.BytesDown) / seconds,
		begun: float64(totals.Begun-h.totals.Begun) / seconds,
	}
	for reason, n := range totals.Refused {
		if n -= h.totals.Refused[reason]; n > 0 {
			if p.refused == nil {
				p.refused = make(map[string]float64)
			}
			p.refused[reason] = float64(n) / seconds
		}
	}
	h.points[interval%points] = p
	h.last, h.at, h.totals = interval, now, totals
}

// number is null in JSON where there is none.
type number struct {
	value float64
	known bool
}

// AppendText returns it with no more digits than anybody can see in a chart.
func (n number) append(to []byte) []byte {
	if !n.known {
		return append(to, "null"...)
	}
	return strconv.AppendFloat(to, float64(int64(n.value*100+0.5))/100, 'f', -1, 64)
}

type numbers []number

// MarshalJSON implements [json.Marshaler].
func (all numbers) MarshalJSON() ([]byte, error) {
	text := []byte{'['}
	for i, n := range all {
		if i > 0 {
			text = append(text, ',')
		}
		text = n.append(text)
	}
	return append(text, ']'), nil
}

// historyAnswer has a number for each interval, the oldest first.
type historyAnswer struct {
	Interval    int                `json:"interval"` // seconds
	End         time.Time          `json:"end"`      // of the last interval
	BytesUp     numbers            `json:"bytes_up"`
	BytesDown   numbers            `json:"bytes_down"`
	SessionsTCP numbers            `json:"sessions_tcp"`
	SessionsUDP numbers            `json:"sessions_udp"`
	NewSessions numbers            `json:"new_sessions"`
	Refusals    map[string]numbers `json:"refusals"`
}

// answer returns what is known up to an interval.
func (h *history) answer(last int64) historyAnswer {
	series := func(read func(p *point) float64) numbers {
		all := make(numbers, points)
		for i := range all {
			interval := last - points + 1 + int64(i)
			if p := &h.points[(interval%points+points)%points]; interval > 0 && p.interval == interval {
				all[i] = number{read(p), true}
			}
		}
		return all
	}
	a := historyAnswer{
		Interval:    int(pointEvery / time.Second),
		End:         time.Unix(last*int64(pointEvery/time.Second), 0).UTC(),
		BytesUp:     series(func(p *point) float64 { return p.up }),
		BytesDown:   series(func(p *point) float64 { return p.down }),
		SessionsTCP: series(func(p *point) float64 { return float64(p.streams) }),
		SessionsUDP: series(func(p *point) float64 { return float64(p.datagrams) }),
		NewSessions: series(func(p *point) float64 { return p.begun }),
		Refusals:    make(map[string]numbers),
	}
	for i := range h.points {
		for reason := range h.points[i].refused {
			if _, again := a.Refusals[reason]; !again && h.points[i].interval > last-points {
				a.Refusals[reason] = series(func(p *point) float64 { return p.refused[reason] })
			}
		}
	}
	return a
}

func serveHistory(w http.ResponseWriter, r *http.Request) error {
	if err := reads(r); err != nil {
		return err
	}
	var a historyAnswer
	if rec := current(); rec != nil {
		rec.mu.Lock()
		a = rec.history.answer(rec.history.last)
		rec.mu.Unlock()
	} else {
		a = new(history).answer(time.Now().Unix() / int64(pointEvery/time.Second))
	}
	return adminapi.Answer(w, a)
}
