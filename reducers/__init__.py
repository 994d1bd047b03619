"""The reducers: one file, one method; the file's name is its name on the command line."""
