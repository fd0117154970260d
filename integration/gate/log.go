package gate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// Session is one entry of the access log.
type Session struct {
	ID              string  `json:"session_id"`
	Network         string  `json:"network"`
	Listener        string  `json:"listener"`
	ClientIP        string  `json:"client_ip"`
	ClientPort      int     `json:"client_port"`
	Upstream        string  `json:"upstream"`
	BytesUp         int64   `json:"bytes_up"`
	BytesDown       int64   `json:"bytes_down"`
	DatagramsUp     int64   `json:"datagrams_up"`   // of UDP
	DatagramsDown   int64   `json:"datagrams_down"` // of UDP
	Duration        float64 `json:"duration"`
	ConnectDuration float64 `json:"connect_duration"`
	Status          int     `json:"status"`
	Reason          string  `json:"reason"`
	Rule            string  `json:"rule"`
	Skipped         int     `json:"skipped"`
	Error           string  `json:"error"`

	// Line is the whole entry.
	Line string `json:"-"`
}

// accessLogger is how a line of the access log is known.
const accessLogger = `"logger":"layer4.log.access"`

// logReader reads the log of a process as it grows.
type logReader struct {
	path     string
	mu       sync.Mutex
	offset   int64
	sessions []Session
}

// read takes in the lines that were completed since the last call.
func (l *logReader) read() ([]Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	file, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(l.offset, io.SeekStart); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	l.offset += int64(len(data))
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, []byte(accessLogger)) {
			session := Session{Line: string(line)}
			if err := json.Unmarshal(line, &session); err != nil {
				return nil, fmt.Errorf("access log: %s: %w", line, err)
			}
			l.sessions = append(l.sessions, session)
		}
	}
	return l.sessions, nil
}

// Sessions returns the access log so far.
func (p *Process) Sessions() []Session {
	p.tb.Helper()
	sessions, err := p.log.read()
	if err != nil {
		p.tb.Fatal(err)
	}
	return sessions
}

// WaitSessions waits until at least n sessions that are wanted (nil: all) are in the access log, and returns them.
func (p *Process) WaitSessions(n int, wanted func(Session) bool) []Session {
	p.tb.Helper()
	var found []Session
	Eventually(p.tb, startTimeout, func() error {
		found = nil
		all := p.Sessions()
		for _, session := range all {
			if wanted == nil || wanted(session) {
				found = append(found, session)
			}
		}
		if len(found) < n {
			return fmt.Errorf("%d of %d sessions in the access log (%d in all)", len(found), n, len(all))
		}
		return nil
	})
	return found
}

// WaitSession waits for the session of the client with this port.
func (p *Process) WaitSession(clientPort int) Session {
	p.tb.Helper()
	return p.WaitSessions(1, func(s Session) bool { return s.ClientPort == clientPort })[0]
}
