"""What SLURM runs, and `workloads/`: one TOML file a workload."""
