"""Runs a command of `sage` in this process, and lets its errors through."""

from sage.cli.main import root


def call(*argv: str) -> int:
    """The exit status of a command; what `main` would print as one line is raised."""
    with root.make_context("sage", list(argv)) as context:
        return int(root.invoke(context))
