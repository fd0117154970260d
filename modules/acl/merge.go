package acl

import "net/netip"

// merge makes the edits of other processes, which come before those of this process that are not stored yet.
func (d *dynamic) merge(edits []edit) {
	last := len(edits) - 1
	for ; last >= 0 && edits[last].All == nil; last-- {
	}
	if last >= 0 { // nothing before it counts
		entries := make(map[netip.Prefix]entry)
		for i := range edits[last:] {
			edits[last+i].apply(entries)
		}
		d.mergeAll(entries)
		return
	}
	d.editing.Lock()
	defer d.editing.Unlock()
	if d.entire {
		return
	}
	own := d.unsavedPrefixes()
	set := d.set.Load()
	var changed []netip.Prefix
	for i := range edits {
		e := &edits[i]
		prefix, there := e.prefix()
		if !prefix.IsValid() || own[prefix] {
			continue
		}
		if there && !d.isOver(e.Set) {
			d.setEntry(*e.Set)
			set = set.With(prefix)
		} else if before := d.entries[prefix]; before != nil {
			d.deleteEntry(before)
			set = set.Without(prefix)
		}
		changed = append(changed, prefix)
	}
	if len(changed) > 0 {
		d.change(set, changed)
		d.schedule()
	}
}

// mergeAll makes these the entries, but for what was edited here and is not stored yet.
func (d *dynamic) mergeAll(entries map[netip.Prefix]entry) {
	d.editing.Lock()
	defer d.editing.Unlock()
	if d.entire {
		return
	}
	for prefix := range d.unsavedPrefixes() {
		if own := d.entries[prefix]; own != nil {
			entries[prefix] = own.entry
		} else {
			delete(entries, prefix)
		}
	}
	all := make([]entry, 0, len(entries))
	for _, e := range entries {
		all = append(all, e)
	}
	d.put(all)
}

// unsavedPrefixes is called with editing held.
func (d *dynamic) unsavedPrefixes() map[netip.Prefix]bool {
	prefixes := make(map[netip.Prefix]bool, len(d.unsaved))
	for i := range d.unsaved {
		prefixes[d.unsaved[i].prefix] = true
	}
	return prefixes
}

// prefix returns the prefix that a line sets or removes. It is not valid for other lines.
func (e *edit) prefix() (prefix netip.Prefix, set bool) {
	switch {
	case e.Set != nil:
		return e.Set.Prefix, true
	case e.Remove != nil:
		return *e.Remove, false
	default:
		return netip.Prefix{}, false
	}
}
