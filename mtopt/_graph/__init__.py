"""Which loss reaches what in the autograd graph, and the rows there."""
