"""What a run tells: records, manifests, progress, reports."""
