"""Benchmarks of the parts: the commands of `sage bench`."""
