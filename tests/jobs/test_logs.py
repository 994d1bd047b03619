"""Tests that `sage logs --follow` prints what a job appends to its log, until Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from launcher import PATIENCE, outside

from sage.jobs import submissions
from sage.jobs.submissions import Entry

CHECKOUT = Path(__file__).parents[2]
RUN = "digits-ff-topk-0123abcd"


def test_a_followed_log_is_printed_as_it_grows_until_ctrl_c(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    entry = Entry(run=RUN, job="7", cluster="local", logs=str(tmp_path))
    submissions.write(runs, [entry])
    entry.log(0).write_text("step 1\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "sage", "logs", "digits-ff-topk", "--runs", str(runs), "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**outside(), "PYTHONPATH": str(CHECKOUT)},
        start_new_session=True,  # so that the signal below reaches both processes, as from a terminal
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "step 1\n"
        with entry.log(0).open("a") as log:
            log.write("step 2\n")
        assert process.stdout.readline() == "step 2\n"
        os.killpg(process.pid, signal.SIGINT)
        _, output = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert output == "sage logs: interrupted\n"
