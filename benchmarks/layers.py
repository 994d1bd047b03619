"""Draws the layers of sage/ and the imports between them as docs/pictures/layers.svg (`make graph`).

The layers are those of import-linter's contract in pyproject.toml. An arrow from one package to another means
that a module of the first imports a module of the second; imports within functions and imports for type
checking count. The output is deterministic.
"""

import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
WIDTH, ROW, BOX, HEIGHT, LEFT = 960, 84, 104, 32, 8

STYLE = """
text { font: 13px sans-serif; fill: #24292f; text-anchor: middle; dominant-baseline: central }
rect { fill: #f6f8fa; stroke: #57606a } .layer { fill: none; stroke: #d0d7de }
path { fill: none; stroke: #57606a; stroke-opacity: .35 }
path:hover { stroke: #0969da; stroke-opacity: 1; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } rect { fill: #161b22; stroke: #8b949e } .layer { stroke: #30363d }
  path { stroke: #8b949e }
}
"""


def layers() -> list[list[str]]:
    """Return the packages of each layer, from the top layer to the bottom one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (entry for entry in settings["contracts"] if entry["type"] == "layers")
    return [layer.split(" | ") for layer in contract["layers"]]


def arrows() -> dict[tuple[str, str], int]:
    """Return the number of imports from each package to each other package."""
    graph = grimp.build_graph("sage", "sage.datasets", cache_dir=None)
    numbers: dict[tuple[str, str], int] = defaultdict(int)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = (module.split(".") + [""])[1], (imported.split(".") + [""])[1]
            if all(ends) and ends[0] != ends[1]:
                numbers[ends] += 1
    return dict(sorted(numbers.items()))


def drawn(rows: list[list[str]], imports: dict[tuple[str, str], int]) -> str:
    """Return the picture as SVG."""
    at: dict[str, tuple[float, float]] = {}
    bands, boxes = [], []
    for row, packages in enumerate(rows):
        y = 12 + row * ROW
        bands.append(
            f'<rect class="layer" x="{LEFT}" y="{y - 6}" width="{WIDTH - 2 * LEFT}" height="{HEIGHT + 12}"/>'
        )
        for column, package in enumerate(packages):
            # Odd rows are shifted horizontally, so that arrows that pass them do not cross their boxes.
            x = WIDTH * (column + 1) / (len(packages) + 1) + (45 if row % 2 else -45)
            at[package] = x, y
            boxes.append(f'<rect x="{x - BOX / 2:g}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="5"/>')
            boxes.append(f'<text x="{x:g}" y="{y + HEIGHT / 2:g}">{package}</text>')
    lines = []
    for (above, below), number in imports.items():
        (x0, y0), (x1, y1) = at[above], at[below]
        y0 += HEIGHT
        middle = (y0 + y1) / 2
        lines.append(
            f'<path d="M{x0:g} {y0}C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1}" marker-end="url(#tip)">'
            f"<title>{above} imports {below}: {number}</title></path>"
        )
    height = 24 + (len(rows) - 1) * ROW + HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>The layers of sage/; each imports only from those below it</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" markerWidth="7" markerHeight="6" refX="7" refY="3" orient="auto">'
            '<polygon points="0 0, 7 3, 0 6" fill="#8b949e"/></marker></defs>',
            *bands,
            *lines,  # behind the names
            *boxes,
            "</svg>",
            "",
        ]
    )


def main() -> None:
    """Write the picture to the given path, by default docs/pictures/layers.svg."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "layers.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(drawn(layers(), arrows()))
    print(target)


if __name__ == "__main__":
    main()
