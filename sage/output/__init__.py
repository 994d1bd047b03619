"""What a person reads: clean text, units, and standard output that may be closed or full."""
