"""One backward pass of several losses: the ways through it, what is refused, what ranks agree on, what it tells."""
