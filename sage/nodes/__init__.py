"""Nodes beyond this one: runs started on them over ssh, and examined before they are relied on."""
