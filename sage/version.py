"""The version of SAGE."""

__version__ = "0.1.0"
