"""Which methods help on the problems, in equal time or equal steps after equal tuning: `python benchmarks/evidence`."""
