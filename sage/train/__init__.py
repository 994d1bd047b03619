"""Training on one rank: the training loop, its checkpoints, and resuming from a checkpoint."""
