package hops

// hasNames: unix sockets may have names that are not in the file system (unix(7)).
const hasNames = true
