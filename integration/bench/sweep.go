package main

import (
	"context"
	"fmt"
	"image/color"
	"image/png"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// runSweep measures small exchanges over the number of connections.
func (b *bench) runSweep(ctx context.Context) ([]Round, error) {
	var work []workload
	for _, n := range sweepPoints {
		if n > b.sweepMost {
			break
		}
		work = append(work, workload{fmt.Sprintf("%d-byte exchanges, %d connections", exchangeBytes, n), tcp, exchanges, n})
	}
	s := *b
	s.duration = b.sweepDuration
	return s.run(ctx, b.sweepRounds, work)
}

// plotSweep draws two panels over the same axis: throughput above, and the 99th percentile below.
func plotSweep(path string, rounds []Round) error {
	throughput, err := panel(rounds, "exchanges per second", func(r Round) float64 { return rate(workload{kind: exchanges}, r) })
	if err != nil {
		return err
	}
	throughput.Title.Text = "64-byte exchanges over TCP connections"
	p99, err := panel(rounds, "p99 in µs", func(r Round) float64 { return r.P99 })
	if err != nil {
		return err
	}
	p99.X.Label.Text = "connections"
	throughput.Legend = plot.NewLegend()
	p99.Legend.Top, p99.Legend.Left = true, true // few connections wait for long

	const width, height = 9 * vg.Inch, 9 * vg.Inch
	image := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(110))
	panels := [][]*plot.Plot{{throughput}, {p99}}
	space := vg.Points(12)
	tiles := draw.Tiles{Rows: 2, Cols: 1, PadTop: space, PadBottom: space, PadLeft: space, PadRight: space, PadY: space}
	for row, canvases := range plot.Align(panels, tiles, draw.New(image)) {
		panels[row][0].Draw(canvases[0])
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := png.Encode(file, image.Image()); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// colours are told apart also by those who don't see all of them (Okabe and Ito, 2008).
var colours = map[string]color.Color{
	portgate: color.RGBA{R: 0xd5, G: 0x5e, A: 0xff},
	haproxy:  color.RGBA{G: 0x72, B: 0xb2, A: 0xff},
	nginx:    color.RGBA{G: 0x9e, B: 0x73, A: 0xff},
	caddyL4:  color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff},
	direct:   color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff},
}

// panel draws one line for each target: medians, with bars from the least to the most.
func panel(rounds []Round, label string, value func(Round) float64) (*plot.Plot, error) {
	p := plot.New()
	p.Y.Label.Text = label
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = plot.TickerFunc(decades)
	p.Add(plotter.NewGrid())
	var ticks []plot.Tick
	for _, t := range targets() {
		line := spreads{}
		for _, n := range sweepPoints {
			values := valuesOf(rounds, t.name, n, value)
			if s := spreadOf(values); s != nil {
				line = append(line, point{float64(n), *s})
				if t.name == portgate {
					ticks = append(ticks, plot.Tick{Value: float64(n), Label: whole(float64(n))})
				}
			}
		}
		if err := line.draw(p, t.name); err != nil {
			return nil, err
		}
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	return p, nil
}

// decades marks 1, 2 and 5 and the powers of ten of each.
func decades(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for power := math.Pow10(int(math.Floor(math.Log10(low)))); power <= high; power *= 10 {
		for _, digit := range []float64{1, 2, 5} {
			if v := digit * power; v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: whole(v)})
			}
		}
	}
	return ticks
}

func valuesOf(rounds []Round, target string, connections int, value func(Round) float64) []float64 {
	var values []float64
	for _, r := range rounds {
		if r.Target == target && r.Connections == connections && r.Error == "" && r.Operations > 0 {
			values = append(values, value(r))
		}
	}
	return values
}

type point struct {
	x float64
	Spread
}

// spreads is a line with error bars, in the form that the plotters take.
type spreads []point

func (s spreads) Len() int { return len(s) }

func (s spreads) XY(i int) (x, y float64) { return s[i].x, s[i].Median }

func (s spreads) YError(i int) (low, high float64) {
	return s[i].Median - s[i].Min, s[i].Max - s[i].Median
}

func (s spreads) draw(p *plot.Plot, name string) error {
	if len(s) == 0 {
		return nil
	}
	line, points, err := plotter.NewLinePoints(s)
	if err != nil {
		return err
	}
	bars, err := plotter.NewYErrorBars(s)
	if err != nil {
		return err
	}
	line.Color, points.Color, bars.Color = colours[name], colours[name], colours[name]
	line.Width = vg.Points(1.5)
	if name == direct {
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	}
	points.Shape = draw.CircleGlyph{}
	p.Add(line, points, bars)
	p.Legend.Add(name, line, points)
	return nil
}
