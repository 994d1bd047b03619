"""Sweeps: submission to SLURM, local execution, status and logs. `workloads/` has one file per workload."""
