"""What ranks are fed: data sets fetched, checked, sharded and batched."""
