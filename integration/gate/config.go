package gate

import (
	"fmt"
	"maps"
	"strings"
)

// JSON is a piece of a config.
type JSON map[string]any

// With returns a copy with one more member.
func (j JSON) With(name string, value any) JSON {
	j = maps.Clone(j)
	j[name] = value
	return j
}

// WithApp returns a copy of a config with one more app.
func (j JSON) WithApp(name string, app JSON) JSON {
	return j.With("apps", j["apps"].(JSON).With(name, app))
}

// Server is a server of the layer4 app.
type Server struct {
	Listen          []string `json:"listen"`
	Routes          []Route  `json:"routes"`
	MatchingTimeout string   `json:"matching_timeout,omitempty"`
}

// Route is a route of a layer4 server; its handlers run in order.
type Route struct {
	Match  []JSON `json:"match,omitempty"`
	Handle []JSON `json:"handle"`
}

// Forward is a forward handler with default options.
func Forward(upstreams ...string) JSON {
	return JSON{"handler": "forward", "to": upstreams}
}

// Listen is a server with one route without a matcher. An address without a network is a gate+tcp one.
func Listen(addr string, handlers ...JSON) Server {
	if !strings.Contains(addr, "/") {
		addr = "gate+tcp/" + addr
	}
	return Server{Listen: []string{addr}, Routes: []Route{{Handle: handlers}}}
}

// ListenUDP is Listen for a gate+udp address.
func ListenUDP(addr string, handlers ...JSON) Server { return Listen("gate+udp/"+addr, handlers...) }

// Layer4 is a config with these servers and no other app.
func Layer4(servers ...Server) JSON {
	named := make(map[string]Server, len(servers))
	for i, server := range servers {
		named[fmt.Sprintf("server%d", i)] = server
	}
	return JSON{"apps": JSON{"layer4": JSON{"servers": named}}}
}
