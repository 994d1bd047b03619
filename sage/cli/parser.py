"""An argument parser whose errors are one line, like all others of the command line."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from ..validate import path


class Parser(argparse.ArgumentParser):
    """argparse's parser that raises a ValueError where it would print its usage and exit.

    An argument of `type=Path` may begin with `~`: no shell expands it in `--output=~/x`.
    """

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        if settings.get("type") is Path:
            settings["type"] = _path
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` shows what is allowed")


def _path(text: str) -> Path:
    try:
        return path(text)
    except ValueError as error:  # argparse would put words of its own in place of ours
        raise argparse.ArgumentTypeError(str(error)) from error
