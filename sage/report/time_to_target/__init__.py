"""Time to target: whether a setting pays."""
