"""Methods compared on a user's own model: training, records on disk, statistics, tables."""
