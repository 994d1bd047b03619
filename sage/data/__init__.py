"""Data sets: fetches, checks, shards and batches them."""
