"""Training: one rank's part of a run, what a checkpoint of it holds, and how it goes on from one."""
