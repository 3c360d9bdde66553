"""Hypothesis settings: no deadline (the machine may be busy), the same examples in every run."""

from hypothesis import settings

settings.register_profile("mtopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("mtopt")
