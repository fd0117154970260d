package console

import (
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/color"
)

// openScreen takes the terminal. It asks the terminal nothing: an answer may be slow over a network, and come when nobody waits for it any more.
func openScreen() (tcell.Screen, error) {
	tcell.SetEncodingFallback(tcell.EncodingFallbackASCII)
	screen, err := tcell.NewScreen(tcell.OptNegotiation(false), tcell.OptSanitizeContent(true))
	if err != nil {
		return nil, err
	}
	return screen, screen.Init()
}

// runScreen shows the table until its user leaves, or the process is told to stop.
func (c *call) runScreen(m *model, screen tcell.Screen, interval time.Duration) error {
	defer screen.Fini()
	m.limit = sessionsShown
	a := &asker{call: c, model: m, answers: make(chan answer, 1), closed: make(chan func(), 1)}
	a.ask()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		paint(screen, m)
		select {
		case <-c.ctx.Done():
			return nil
		case one := <-a.answers:
			a.take(one)
		case said := <-a.closed:
			said()
			a.ask()
		case <-ticker.C:
			if !m.paused && !a.asking {
				a.ask()
			}
		case event, open := <-screen.EventQ():
			if !open {
				return nil
			}
			if left, err := a.event(screen, event); left || err != nil {
				return err
			}
		}
	}
}

// event answers what has come from the terminal. It reports whether the user leaves.
func (a *asker) event(screen tcell.Screen, event tcell.Event) (left bool, err error) {
	switch event := event.(type) {
	case *tcell.EventResize:
		screen.Sync()
	case *tcell.EventError:
		return true, event
	case *tcell.EventKey:
		deed := a.model.key(event.Key(), event.Str())
		if deed.fetch {
			a.ask()
		}
		if deed.close != nil {
			a.close(deed.close)
		}
		return deed.quit, nil
	}
	return false, nil
}

// styles are how each look is shown. NO_COLOR leaves the colours out.
var styles = [...]tcell.Style{
	plain:   tcell.StyleDefault,
	strong:  tcell.StyleDefault.Bold(true),
	heading: tcell.StyleDefault.Reverse(true),
	chosen:  tcell.StyleDefault.Reverse(true).Bold(true),
	good:    tcell.StyleDefault.Foreground(color.PaletteColor(2)),
	warning: tcell.StyleDefault.Foreground(color.PaletteColor(3)),
	bad:     tcell.StyleDefault.Foreground(color.PaletteColor(1)).Bold(true),
}

func paint(screen tcell.Screen, m *model) {
	screen.Clear()
	width, height := screen.Size()
	for y, l := range m.screen(width, height) {
		x := 0
		for _, p := range l {
			screen.PutStrStyled(x, y, p.text, styles[p.look])
			x += displaywidth.String(p.text)
		}
	}
	screen.Show()
}
