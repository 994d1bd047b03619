"""Runs and checks on other nodes, over ssh."""
