"""Creates the pictures of the documentation from a real sweep of short runs on this machine.

    python benchmarks/pictures.py [--output docs/pictures] [--runs FOLDER]

The sweep `SWEEP` runs locally and takes a few minutes on two cores. Each picture exists for light and dark
pages: `status-*.svg` is the output of `sage status`, `report-*.png` the top of the report's page,
`figures-*.png` its figures, and `tensorboard-*.png` TensorBoard with the same runs. The PNG files need
Chromium. The runs are too short for a comparison of methods.
"""

import argparse
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from rich.text import Text

SWEEP = """\
workload = "digits-ff"
seed = [0, 1]
world_size = 2
epochs = 6
device = "cpu"
parallel = 2

[[grid]] # the reference, which overlaps communication with backward
reducer = "exact"
mount = "ddp"

[[grid]]
reducer = ["topk", "sage", "efsignsgd"]
"""

SCHEMES = ("light", "dark")

ONLY_FIGURES = "header, nav, footer, h2, .tables, .quiet, details { display: none }"
"""A style sheet that hides everything but the figures of a report."""

TAGS = "train/loss|eval/accuracy|density/had|wire/sent"
"""The scalars in the pictures of TensorBoard."""

MAX_BYTES = 200_000
"""Largest size of a picture."""

COLUMNS = 96
"""Width of the terminal in the picture of `sage status`."""

TERMINALS: Mapping[str, TerminalTheme] = {
    "light": TerminalTheme(
        (255, 255, 255),
        (36, 41, 47),
        [
            (36, 41, 47),
            (207, 34, 46),
            (17, 99, 41),
            (124, 78, 0),
            (9, 105, 218),
            (130, 80, 223),
            (27, 124, 131),
        ]
        + [(110, 119, 129)],
    ),
    "dark": SVG_EXPORT_THEME,
}
"""Colours of the terminal."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def main() -> None:
    """Run the sweep and create all pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--runs", type=Path, help="keep the sweep's runs here; default: a temporary folder")
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("pictures.py needs Chromium for the report and TensorBoard: install chromium")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = given.runs or folder / "runs"
        output = given.output.resolve()
        output.mkdir(parents=True, exist_ok=True)
        sweep = folder / "digits.toml"
        sweep.write_text(SWEEP)
        submit = ["submit", str(sweep), "--cluster", "local", "--runs", str(runs.resolve())]
        subprocess.run([sys.executable, "-m", "sage", *submit], check=True)
        status(sweep, runs.resolve(), output)
        subprocess.run(
            [sys.executable, "-m", "sage", "report", str(runs), "--output", str(folder / "report")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        page = folder / "report" / "report.html"
        figures = folder / "figures.html"
        figures.write_text(page.read_text().replace("</head>", f"<style>{ONLY_FIGURES}</style></head>"))
        for scheme in SCHEMES:
            screenshot(page.as_uri(), output / f"report-{scheme}.png", scheme, (1280, 1150))
            screenshot(figures.as_uri(), output / f"figures-{scheme}.png", scheme, (1280, 985))
        with tensorboard(runs) as address:
            for scheme in SCHEMES:
                # The headless browser has no WebGL.
                query = f"?forceSVG=true&darkMode={str(scheme == 'dark').lower()}&tagFilter={TAGS}#timeseries"
                screenshot(address + query, output / f"tensorboard-{scheme}.png", scheme, (1280, 900))
    for path in sorted(output.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")


def status(sweep: Path, runs: Path, output: Path) -> None:
    """Draw what `sage status` prints in a terminal, as status-light.svg and status-dark.svg."""
    done = subprocess.run(
        [sys.executable, "-m", "sage", "status", str(sweep), "--runs", str(runs)],
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        check=True,
    )
    for scheme in SCHEMES:
        (output / f"status-{scheme}.svg").write_text(
            terminal_svg(done.stdout, f"sage status {sweep.name}", scheme)
        )


def terminal_svg(printed: str, title: str, scheme: str) -> str:
    """Return what a command printed to a terminal, with its colours, as an SVG picture of the terminal.

    The picture loads no other files: it uses fonts of the reader's system.
    """
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(printed.rstrip()), soft_wrap=True)
    svg = console.export_svg(title=title, theme=TERMINALS[scheme], unique_id=f"status-{scheme}")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def screenshot(address: str, path: Path, scheme: str, size: tuple[int, int]) -> None:
    """Draw a page in a headless Chromium that prefers the colour scheme, `size` pixels wide and high."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        chosen = ["--force-dark-mode"] if scheme == "dark" else []
        place = [f"--user-data-dir={profile}", f"--screenshot={path}", f"--window-size={size[0]},{size[1]}"]
        # Virtual time advances only while nothing is loading: the page is complete, however slow the machine.
        command = [CHROMIUM, *QUIET, *chosen, *place, "--virtual-time-budget=20000", address]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    shrink(path)


def shrink(path: Path) -> None:
    """Compress a PNG picture; if it is larger than `MAX_BYTES`, reduce it to 256 colours.

    Raises:
        ValueError: if the picture is still larger than `MAX_BYTES`.
    """
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
    pixels.save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        pixels.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if (num_bytes := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {num_bytes} bytes, at most {MAX_BYTES} are allowed; make it smaller")


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """Serve the runs with TensorBoard on a free loopback port; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--load_fast", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{address}data/plugin/timeseries/tags", timeout=10) as answer:
                    if b"train/loss" in answer.read():
                        break
            except OSError:
                if server.poll() is not None:
                    raise
            if time.monotonic() > until:
                raise TimeoutError(f"TensorBoard served no runs of {runs} within 120 s")
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
