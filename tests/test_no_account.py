"""Tests that SAGE runs for a user without an account and without HOME, as in many containers."""

import contextlib
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[1]
RUN = ["run", "digits-ff", "--reducer", "topk", "--world-size", "2", "--epochs", "1", "--device", "cpu"]
RUN += ["--workers-in-process"]

# If the user cannot read the installation, root first runs the command once, which imports all modules.
CODE = """
import os, sys

folder, user, before, *argv = sys.argv[1:]
if before == "1":
    from sage.cli.main import main
    assert main(argv) == 0
os.umask(0o022)
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
os.chdir(folder)
print("=" * 8, flush=True)
from sage.cli.main import main
sys.exit(main(argv))
"""


def free_user() -> int:
    """Return a user id without an account on the machine."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(number for number in range(12345, 60000) if number not in taken)


def may_read(user: int) -> bool:
    """Return whether this user can start Python and read torch and SAGE."""
    code = f"open({torch.__file__!r}); open({str(CHECKOUT / 'sage' / 'cli' / 'main.py')!r})"
    with contextlib.suppress(OSError):
        return not subprocess.run(
            [sys.executable, "-c", code], user=user, group=user, extra_groups=[], cwd="/", check=False
        ).returncode
    return False


def without_account(tmp_path: Path, user: int, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `sage` as this user, in a folder of the user, without HOME and without a user name."""
    unset = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "SAGE_DATA_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(user), str(int(not may_read(user))), *argv],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["list"], "topk"),
        ([*RUN, "--print-config"], '"reducer": "topk"'),
        (RUN, ""),
        (["data", "list"], "digits"),
        (["submit", "--help"], "--dry-run"),
    ],
    ids=["list", "print-config", "run", "data", "help"],
)
def test_a_user_without_an_account_and_a_home_has_every_command(
    tmp_path: Path, argv: list[str], expected: str
) -> None:
    user = free_user()
    with pytest.raises(KeyError):
        pwd.getpwuid(user)
    with tempfile.TemporaryDirectory() as name:  # other users cannot access pytest's temporary folders
        folder = Path(name)
        os.chown(folder, user, user)
        done = without_account(tmp_path, user, folder, *argv)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout.partition("=" * 8)[2]
        assert "Traceback" not in done.stderr
        results = list(folder.glob("runs/*/result.json"))
        assert len(results) == (argv is RUN)
        assert all(result.stat().st_uid == user for result in results)
