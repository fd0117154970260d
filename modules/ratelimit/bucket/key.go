package bucket

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
)

// Key is whose bucket it is, and of which limit. It has a size of its own so that a store needs no memory
// beside it: an address fits, and so does a short text. Of a longer text it has the beginning and a hash.
type Key struct{ a, b, c uint64 }

// What the first byte of a key says of the rest.
const (
	formAddr   = 1 + iota // 16 bytes of an address, and the length of the prefix
	formText              // a length, and as much text
	formHashed            // the beginning of a text, and a hash of all of it
	formShared            // stands for the keys that a store has no room for
)

// counts marks the first byte of keys whose value is a count.
const counts = 0x80

const (
	keyBytes  = 24
	headBytes = 3 // form and limit
	textBytes = keyBytes - headBytes - 1
	hashBytes = 8
)

// ForAddr returns the key of a client, or of the subnet that its address has these leading bits of.
func (l *Limit) ForAddr(addr netip.Addr, bitLen int) Key {
	var b [keyBytes]byte
	l.head(&b, formAddr)
	addr = addr.Unmap().WithZone("")
	if prefix, err := addr.Prefix(bitLen); err == nil {
		addr = prefix.Addr()
	}
	as16 := addr.As16()
	copy(b[headBytes:], as16[:])
	b[headBytes+16] = byte(bitLen)
	if addr.Is4() {
		b[headBytes+17] = 4
	}
	return pack(&b)
}

// ForText returns the key of anything else that has a name.
func (l *Limit) ForText(text string) Key {
	var b [keyBytes]byte
	if len(text) <= textBytes {
		l.head(&b, formText)
		b[headBytes] = byte(len(text))
		copy(b[headBytes+1:], text)
		return pack(&b)
	}
	l.head(&b, formHashed)
	copy(b[headBytes:keyBytes-hashBytes], text)
	sum := sha256.Sum256([]byte(text))
	copy(b[keyBytes-hashBytes:], sum[:])
	return pack(&b)
}

func (l *Limit) head(b *[keyBytes]byte, form byte) {
	b[0] = form
	if l.kind == Count {
		b[0] |= counts
	}
	binary.BigEndian.PutUint16(b[1:], l.id)
}

// sharedKey is the key that stands for k, and others of its limit, where there is no room for k.
func sharedKey(k Key, hash uint64) Key {
	b := k.bytes()
	b[0] = b[0]&counts | formShared
	clear(b[headBytes:])
	b[headBytes] = byte(hash>>8) % sharedBuckets
	return pack(&b)
}

func pack(b *[keyBytes]byte) Key {
	return Key{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
}

func (k Key) bytes() (b [keyBytes]byte) {
	binary.BigEndian.PutUint64(b[:], k.a)
	binary.BigEndian.PutUint64(b[8:], k.b)
	binary.BigEndian.PutUint64(b[16:], k.c)
	return b
}

// LimitID returns the ID of the limit.
func (k Key) LimitID() uint16 { return uint16(k.a >> 40) }

func (k Key) form() byte    { return byte(k.a>>56) &^ counts }
func (k Key) isCount() bool { return byte(k.a>>56)&counts != 0 }

// String returns the address, the prefix or the text that the key was made of. A text that was too long ends
// in a tilde and part of a hash.
func (k Key) String() string {
	b := k.bytes()
	switch k.form() {
	case formAddr:
		addr := netip.AddrFrom16([16]byte(b[headBytes:]))
		if b[headBytes+17] == 4 {
			addr = addr.Unmap()
		}
		if bitLen := int(b[headBytes+16]); bitLen < addr.BitLen() {
			return netip.PrefixFrom(addr, bitLen).String()
		}
		return addr.String()
	case formText:
		return string(b[headBytes+1:][:b[headBytes]])
	case formHashed:
		return string(b[headBytes:keyBytes-hashBytes]) + "~" + hex.EncodeToString(b[keyBytes-hashBytes:])
	default:
		return "(beyond max_keys)"
	}
}
