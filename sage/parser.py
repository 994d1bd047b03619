"""An argument parser whose errors are one line, like all others of the command line."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser that raises a ValueError where it would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` shows what is allowed")
