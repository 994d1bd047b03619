"""Tests that a failed job is requeued a limited number of times, whatever its reason and whatever is lost."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from launcher import outside

from sage.exit_status import notify_job

BATCH = Path(__file__).parents[2] / "jobs" / "batch.sh"
JOB = "31234"

SCONTROL = """#!/bin/sh
case "$*" in
"--oneliner show job 31234")
    echo "JobId=31234 JobName=x JobState=RUNNING Reason=None Requeue=1 Restarts=$RESTARTS BatchFlag=1" ;;
"requeue 31234") echo x >>"$REQUEUES" ;;
*) echo "scontrol was called with $*" >&2; exit 1 ;;
esac
"""

START = """
set -euo pipefail
source {batch}
sage_set_rendezvous "$SLURM_SUBMIT_DIR"
{before}
status=0
sh -c {rank} & sage_wait $! || status=$?
sage_finish "$status"
"""

TEXTS = {
    "short": "a rank failed",
    "long": "x" * 140_000,
    "a count": "Comment=sage: failure 0 of at most 9: Restarts=0 ",
    "lines": "one\ntwo\n0 finished\n75 stopped\r\n",
    "quotes": """it's "$(touch hacked)" `touch hacked` \\ ; touch hacked #""",
    "escape codes": "\x1b[2J\x1b]0;title\x07\x9b31m\x00\x7f",
    "no text": "",
    "other scripts": "größer × 概率 \u202e \udcff",
}


class Job:
    """A job of one task that is started repeatedly, as by SLURM, until it is not requeued."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.own = folder / f".sage-job-{JOB}"
        self.requeues = folder / "requeues"
        (folder / "bin").mkdir()
        (folder / "bin" / "scontrol").write_text(SCONTROL)
        (folder / "bin" / "scontrol").chmod(0o755)
        self.environment = {
            **outside(),
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": JOB,
            "SLURM_SUBMIT_DIR": str(folder),
            "REQUEUES": str(self.requeues),
            "hostip": "127.0.0.1",
            "port": "1",
            **environment,
        }
        self.output = ""

    @property
    def times(self) -> int:
        """Return how often it has been requeued."""
        return len(self.requeues.read_text().split()) if self.requeues.exists() else 0

    def start(self, rank: str, before: str = "", counted: bool = True) -> int:
        """Start the job, for the first time or again; return its exit status."""
        environment = {**self.environment, "RESTARTS": str(self.times)}
        if self.times and counted:
            environment["SLURM_RESTART_COUNT"] = str(self.times)
        script = START.format(batch=BATCH, rank=quoted(rank), before=before)
        done = subprocess.run(
            ["bash", "-c", script], env=environment, cwd=self.folder, capture_output=True, check=False
        )
        self.output += done.stdout.decode() + done.stderr.decode()
        return done.returncode

    def run(self, rank: str, before: str = "", most: int = 12, counted: bool = True) -> int:
        """Start the job until it is not requeued any more; return the last exit status."""
        while True:
            times = self.times
            status = self.start(rank, before, counted)
            if self.times == times:
                return status
            assert self.times < most, f"still requeued after {self.times} times:\n{self.output[-2000:]}"


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def failing(text: str, folder: Path) -> str:
    """A rank that writes why it fails, like `sage run`."""
    name = folder / "word"
    before = os.environ.get("SAGE_OUTCOME")
    os.environ["SAGE_OUTCOME"] = str(name)
    try:
        notify_job(1, text)
    finally:
        del os.environ["SAGE_OUTCOME"]
        if before is not None:
            os.environ["SAGE_OUTCOME"] = before
    return f"cp {name} $SAGE_OUTCOME; exit 137"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_failure_is_requeued_at_most_max_requeues_times_whatever_its_reason(
    tmp_path: Path, text: str
) -> None:
    job = Job(tmp_path, max_requeues="1")
    assert job.run(failing(text, tmp_path)) == 1
    assert job.times == 1
    assert "failure 1 of at most 1: " in job.output
    assert "job 31234 ended with status 1, failed again after 1 requeues: " in job.output
    assert_printable(job.output)
    assert not (tmp_path / "hacked").exists()
    assert not job.own.exists()


def test_an_outcome_by_another_program_is_truncated_and_cleaned(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"1 " + b"\x1b[31m\xc2\x9b\0" * 100_000)
    job = Job(tmp_path, max_requeues="1")
    assert job.run(f"cp {raw} $SAGE_OUTCOME; exit 9") == 1
    assert job.times == 1
    assert_printable(job.output)
    for word in ("yes", "999 x", "-1 x", "1e9 x", "$(false) x"):
        raw.write_text(word)
        assert Job(folder(tmp_path), max_requeues="0").run(f"cp {raw} $SAGE_OUTCOME; exit 9") == 9


def test_a_requeue_after_a_stop_is_not_counted_as_a_failure(tmp_path: Path) -> None:
    job = Job(tmp_path, max_requeues="1")
    for _ in range(5):
        assert job.start("exit 75") == 75
    assert job.times == 5
    assert "job 31234: stopped, checkpoint written; requeued" in job.output
    assert job.run("exit 9") == 9
    assert job.times == 6
    assert "failure 1 of at most 1: a rank exited with status 9" in job.output


@pytest.mark.parametrize(
    "lost",
    [
        "rm -rf $sage_folder/failures",
        "rm -rf $sage_folder",
        "echo 0 of 9 >$sage_folder/failures",
        "echo -5 >$sage_folder/failures",
        "head -c 100000 /dev/zero >$sage_folder/failures",
        "rm $sage_folder/failures; ln -s /dev/zero $sage_folder/failures",
        "rm $sage_folder/failures; mkdir $sage_folder/failures",
        "rm $sage_folder/failures; mkfifo $sage_folder/failures",
    ],
)
def test_if_the_count_is_lost_all_restarts_count_as_failures(tmp_path: Path, lost: str) -> None:
    job = Job(tmp_path, max_requeues="2")
    assert job.run("exit 9", before=lost) == 9
    assert job.times <= 2


def test_a_slurm_that_does_not_export_the_restart_count_changes_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, max_requeues="2")
    assert job.run("exit 9", counted=False) == 9
    assert job.times == 2


def test_a_job_whose_count_cannot_be_written_is_not_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path)
    # A folder in place of the temporary file also stops root.
    assert job.run("exit 9", before="mkdir $sage_folder/failures.$$") == 9
    assert job.times == 0
    assert (
        f"not requeued, because {job.own}/failures cannot be written: a rank exited with status 9"
        in job.output
    )


def test_the_jobs_folder_can_be_entered_by_its_owner_only(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.start("ls -ld $(dirname $SAGE_OUTCOME) >seen; umask 0; exit 0", before="umask 0")
    assert (tmp_path / "seen").read_text().startswith("drwx------")
    assert not job.own.exists()


def test_a_folder_that_was_accessible_by_others_is_recreated(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.own.mkdir()
    job.own.chmod(0o777)
    (job.own / "outcome-0").write_text("0 forged\n")
    assert job.start("stat -c %a $(dirname $SAGE_OUTCOME); exit 2") == 2
    assert "700\n" in job.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, kind: str) -> None:
    job = Job(tmp_path)
    if kind == "file":
        job.own.write_text("")
    else:
        folder = job.own if kind == "folder" else tmp_path / "elsewhere"
        folder.mkdir(mode=0o700)
        (folder / "outcome-0").write_text("0 forged\n")
        if kind == "link":
            job.own.symlink_to(folder)
        else:
            os.chown(folder, 65534, 65534)
    assert job.start("echo the rank has begun; exit 9") == 2
    assert f"sage: {job.own} is not a folder that only you can access: remove it, or submit" in job.output
    assert "the rank has begun" not in job.output


def test_an_outcome_of_an_earlier_start_is_ignored(tmp_path: Path) -> None:
    job = Job(tmp_path, max_requeues="1")
    job.run("case $SAGE_OUTCOME in *-0) echo 0 >${SAGE_OUTCOME%0}1 ;; esac; exit 9")
    assert job.times == 1
    assert "ended with status 9, failed again" in job.output


def test_a_job_submitted_inside_another_has_its_own_rendezvous(tmp_path: Path) -> None:
    outer = Job(tmp_path, hostip="10.9.8.7", port="77")
    outer.start("env >inner; exit 0")
    handed = dict(line.split("=", 1) for line in (tmp_path / "inner").read_text().splitlines() if "=" in line)
    assert handed["hostip"] == "10.9.8.7"
    given_on = {name: handed[name] for name in ("hostip", "port", "SAGE_MEETING")}
    inner = Job(folder(tmp_path), **given_on)
    inner.start("echo meets at $hostip $port; exit 0")
    assert "meets at 127.0.0.1 " in inner.output
    assert "meets at 127.0.0.1 77" not in inner.output
    chosen = Job(folder(tmp_path), **{**given_on, "hostip": "10.1.1.1"})
    chosen.start("echo meets at $hostip $port; exit 0")
    assert "meets at 10.1.1.1 77" in chosen.output


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (
            {"SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1(x2)"},
            "none none",
        ),  # of the outer job
        ({"SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "3,1"}, "4 none"),
        ({"SLURM_NTASKS": "7", "SLURM_TASKS_PER_NODE": "2(x3),1"}, "7 none"),
        ({"SLURM_NTASKS": "2"}, "2 none"),
        ({"SLURM_CPUS_PER_TASK": "3"}, "none 3"),
        ({"SLURM_CPUS_PER_TASK": "2"}, "none none"),
        ({}, "none none"),
    ],
)
def test_a_job_submitted_inside_another_has_its_own_number_of_tasks(
    tmp_path: Path, given: dict[str, str], left: str
) -> None:
    job = Job(tmp_path, **given)
    script = tmp_path / "bin" / "scontrol"
    script.write_text(script.read_text().replace("BatchFlag=1", "BatchFlag=1 NumTasks=1 CPUs/Task=3 ReqB=0"))
    job.start(
        "echo left ${SLURM_NTASKS:-none} ${SLURM_CPUS_PER_TASK:-none}; exit 2", before="sage_forget_other_job"
    )
    assert f"left {left}\n" in job.output


@pytest.mark.parametrize("given", ["many", "-1", "1.5", "$(touch hacked)", "99999999999999999999"])
def test_an_invalid_max_requeues_is_refused_before_anything_runs(tmp_path: Path, given: str) -> None:
    job = Job(tmp_path, max_requeues=given)
    assert job.start("exit 9") == 2
    assert "allowed is a whole number from 0 to 999999" in job.output
    assert not (tmp_path / "hacked").exists()
    assert Job(folder(tmp_path), max_requeues="08").run("exit 9", most=10) == 9


def folder(parent: Path) -> Path:
    """A new folder."""
    made = parent / f"job-{len(list(parent.iterdir()))}"
    made.mkdir()
    return made


def assert_printable(output: str) -> None:
    """Assert that there is no escape code and no long line."""
    for line in output.splitlines():
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", line), repr(line[:200])
        assert len(line.encode()) < 2000


def test_the_outcome_file_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        monkeypatch.setenv("SAGE_OUTCOME", str(tmp_path / "outcome"))
        notify_job(1, "first")
        notify_job(0, "second")
    finally:
        os.umask(before)
    assert (tmp_path / "outcome").read_text() == "1 first\n"
    assert stat.S_IMODE((tmp_path / "outcome").stat().st_mode) == 0o600
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "link").symlink_to(elsewhere)
    monkeypatch.setenv("SAGE_OUTCOME", str(tmp_path / "link"))
    notify_job(0, "")
    assert not elsewhere.exists()
