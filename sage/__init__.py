"""SAGE: a SLURM-native benchmark suite for gradient compression in distributed PyTorch training."""

__version__ = "0.1.0"
