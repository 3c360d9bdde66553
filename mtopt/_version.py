"""The version. Nothing else."""

__version__ = "0.2.0"
