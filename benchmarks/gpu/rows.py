"""The results of a section: one row for each check or measurement, written as soon as it is known."""

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "failed", "measured", "missed", "skipped", "cut off"]


@dataclass(frozen=True)
class Row:
    """One check or measurement."""

    section: str
    name: str
    status: Status
    value: str = ""
    """The measured or observed value, with its unit."""
    goal: str = ""


class Rows:
    """Appends rows to a file, one JSON object per line, so that a section that is killed loses none.

    Args:
        section: Name of the section.
        path: The file.
        seconds: Time of the section; `late` is true when little of it remains.
    """

    def __init__(self, section: str, path: Path, seconds: float) -> None:
        self._section, self._path = section, path
        self._end = time.monotonic() + 0.9 * seconds

    @property
    def late(self) -> bool:
        """Whether the section should end."""
        return time.monotonic() > self._end

    def add(self, name: str, status: Status, value: str = "", goal: str = "") -> None:
        """Write a row."""
        row = Row(self._section, name, status, value, goal)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(line(row), end="", flush=True)

    def measured(self, name: str, value: str, *, goal: str, is_reached: bool | None) -> None:
        """Write a measurement; `is_reached` is None if it has no goal."""
        status: Status = "measured" if is_reached is None else "ok" if is_reached else "missed"
        self.add(name, status, value, goal)

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Write whether the block raises; an error does not end the section."""
        try:
            yield
        except Exception as error:  # any error of a kernel or reducer is a result
            trace = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(f"{type(error).__name__}: {error}".split())[
                -300:
            ]  # the last line of a rank's traceback is its error
            self.add(name, "failed", f"{text} ({Path(trace.filename).name}:{trace.lineno})")
        else:
            self.add(name, "ok")

    def while_in_time(self, work: Sequence[tuple[str, Callable[[], Any]]]) -> None:
        """Run these checks in turn; when the time is over, write which were not run."""
        for done, (name, run) in enumerate(work):
            if self.late:
                left = [name for name, _ in work[done:]]
                self.add(
                    "time is over", "cut off", f"{len(left)} of {len(work)} not run: {', '.join(left[:8])}"
                )
                return
            with self.check(name):
                run()


def read(path: Path) -> list[Row]:
    """Return the rows of a file, without an incomplete last line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def line(row: Row) -> str:
    """Return a line of the Markdown table."""
    cells = (row.section, row.name, row.status, row.value, row.goal)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


HEADING = "| section | what | status | value | goal |\n|---|---|---|---|---|\n"
