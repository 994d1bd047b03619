"""The models: one file, one network family; the file's name is its name in a workload."""
