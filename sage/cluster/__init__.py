"""Starting runs on other nodes over ssh, and checking nodes before a run."""
