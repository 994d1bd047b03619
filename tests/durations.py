"""Implements `pytest --by-file`, which prints the wall-clock and CPU seconds of each test file."""

import resource
from collections import defaultdict
from collections.abc import Generator

import pytest

PROCESSOR = "processor seconds"
"""Key of the seconds in a test report, which carries them from an xdist worker to the main process."""


class ByFile:
    """Sums the reports of a session by file and prints the sums."""

    def __init__(self) -> None:
        self._before = 0.0
        self._seconds: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def pytest_runtest_logstart(self) -> None:
        """Record the time at which a test starts."""
        self._before = _processor_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the CPU time since the last report, of this process and of children it waited for."""
        report = yield
        now = _processor_seconds()
        report.user_properties.append((PROCESSOR, now - self._before))
        self._before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the seconds of a setup, a call or a teardown to those of its file."""
        sums = self._seconds[report.nodeid.partition("::")[0]]
        sums[0] += report.duration
        sums[1] += float(dict(report.user_properties).get(PROCESSOR, 0.0))  # type: ignore[arg-type]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the files, the slowest first."""
        terminalreporter.section("seconds by file: by the clock, of processor time")
        slowest_first = sorted(self._seconds.items(), key=lambda item: -item[1][0])
        for file, (clock, processor) in slowest_first:
            terminalreporter.write_line(f"{clock:8.1f} {processor:8.1f}  {file}")
        sums = [sum(seconds) for seconds in zip(*self._seconds.values(), strict=True)] or [0.0, 0.0]
        terminalreporter.write_line(f"{sums[0]:8.1f} {sums[1]:8.1f}  {len(self._seconds)} files")


def _processor_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)
