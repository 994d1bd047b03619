"""The models: one file per network family; a workload refers to a model by its file name."""
