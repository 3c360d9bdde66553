"""Which methods help on the problems, at equal wall-clock time and after equal tuning: `python benchmarks/evidence`."""
