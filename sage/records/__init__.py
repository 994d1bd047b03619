"""What a run writes into its folder: records, manifest, progress."""
