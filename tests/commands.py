"""Runs a command of `sage` in this process and propagates its errors."""

from sage.cli.main import root


def call(*argv: str) -> int:
    """Run a command and return its exit status; errors that `main` prints as one line are raised."""
    with root.make_context("sage", list(argv)) as context:
        return int(root.invoke(context))
