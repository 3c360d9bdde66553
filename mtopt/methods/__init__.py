"""One method a file; `base` has the three kinds."""
