"""The version. Nothing else."""

__version__ = "0.1.0"
