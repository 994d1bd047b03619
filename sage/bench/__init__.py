"""Measurements of the parts: what `sage bench` runs."""
