"""Files of a run folder: metrics records, the manifest and the result; and the progress display."""
