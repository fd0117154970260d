package upstream

import "net"

// Addrs returns a function that returns the addresses for streams of an upstream that is not Dynamic, best first, as far as they are known: it looks nothing
// up. It may be called as long as somebody holds the name of the upstream.
func (p *Pool) Addrs(position int) func() []net.Addr {
	u, names := p.upstreams[position], p.names // and not the pool, which may be replaced long before
	if u.fixed != nil {
		return func() []net.Addr { return u.at(situation{}) }
	}
	key := u.Addr.nameKey()
	return func() []net.Addr {
		ips := names.inOrder(names.last(key), service{host: key.host, port: u.Addr.Port})
		addrs := make([]net.Addr, len(ips))
		for i, ip := range ips {
			addrs[i] = u.Addr.at(ip, 0, false)
		}
		return addrs
	}
}
