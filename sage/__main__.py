"""Entry point: `python -m sage` runs the command `sage`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
