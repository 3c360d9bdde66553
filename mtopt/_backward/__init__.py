"""One backward of several losses: the ways through it, what is refused, what ranks agree on, what it says of itself."""
