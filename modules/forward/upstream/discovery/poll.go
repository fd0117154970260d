package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// DefaultRefresh is how long an answer of a source that has to be asked is used at most, unless the config says otherwise.
	DefaultRefresh = 30 * time.Second
	// MinRefresh keeps a source with a TTL of 0, or a mistake, from being asked without a pause.
	MinRefresh = time.Second
	// maxAsked bounds the pause that a source asks for, so that a mistake of it does not end the discovery.
	maxAsked = time.Hour
	// jitter is the part of a pause that is added by chance, so that many gateways don't ask at the same moment.
	jitter = 0.1
)

// ErrSame says that the last answer holds still.
var ErrSame = errors.New("nothing has changed")

// Poll asks for answers until ctx ends. After an answer it pauses for the time that ask returns, which is between [MinRefresh] and refresh;
// zero: for refresh. After a failure it pauses for a second, and twice as long with each further one, up to refresh, or for the time that ask
// returns, up to an hour. [ErrSame] is no failure.
func Poll(ctx context.Context, to Sink, refresh time.Duration, ask func(context.Context) (Answer, time.Duration, error)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for failures := 0; ; {
		answer, asked, err := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, ErrSame):
			failures = 0
			to.Same()
		case err != nil:
			failures++
			to.Failed(err)
		default:
			failures = 0
			to.Answer(answer)
		}
		timer.Reset(pause(refresh, asked, failures))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

func pause(refresh, asked time.Duration, failures int) time.Duration {
	wait := refresh
	switch {
	case failures > 0:
		const enough = 12 // doublings
		wait = max(min(MinRefresh<<min(failures-1, enough), refresh), min(asked, maxAsked))
	case asked > 0:
		wait = min(asked, refresh)
	}
	return time.Duration(float64(max(wait, MinRefresh)) * (1 + jitter*rand.Float64()))
}
