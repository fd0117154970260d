package gate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// indexed is one entry of the slow and obvious oracle: every port by itself.
type indexed struct{ network, listener string }

func TestIndex(t *testing.T) {
	t.Parallel()
	var x Index[int]
	oracle := make(map[indexed][]int)
	add := func(network, format string, first, ports uint, value int) {
		x.Add(network, fmt.Sprintf(format, first), ports, value)
		for port := first; port < first+ports; port++ {
			at := indexed{network, fmt.Sprintf(format, port)}
			oracle[at] = append(oracle[at], value)
		}
	}
	networks, hosts := []string{"tcp", "udp"}, []string{":%d", "[::1]:%d", "127.0.0.1:%d"}
	for value := range 300 {
		add(networks[rand.IntN(2)], hosts[rand.IntN(3)], uint(rand.IntN(200)), uint(rand.IntN(20)), value)
	}
	x.Add("unix", "/run/gate.sock", 1, 1000)
	oracle[indexed{"unix", "/run/gate.sock"}] = []int{1000}
	x.Add("unix", "/run/gate:80", 1, 1001)
	oracle[indexed{"unix", "/run/gate:80"}] = []int{1001}
	x.Add("tcp", "fd/3", 1, 1002)
	oracle[indexed{"tcp", "fd/3"}] = []int{1002}

	for _, network := range []string{"tcp", "udp", "unix"} {
		listeners := []string{"/run/gate.sock", "/run/gate:80", "/run/gate", "fd/3", "", ":", "[::1]", "127.0.0.1:x", ":70000"}
		for port := range 230 {
			for _, format := range hosts {
				listeners = append(listeners, fmt.Sprintf(format, port))
			}
		}
		for _, listener := range listeners {
			if got, want := x.At(network, listener), oracle[indexed{network, listener}]; !slices.Equal(got, want) {
				t.Errorf("%s %s: %v, want %v", network, listener, got, want)
			} else if first, ok := x.First(network, listener); ok != (len(want) > 0) || ok && first != want[0] {
				t.Errorf("%s %s: the first is %d, %t of %v", network, listener, first, ok, want)
			}
		}
	}
	if got := new(Index[int]).At("tcp", ":1"); got != nil {
		t.Errorf("an empty index has %v", got)
	}
}
