"""The reducers: one file per method; the file name is the command-line name."""
