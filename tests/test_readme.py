"""Tests of the README: its commands run, its links resolve, its tables list every reducer and workload."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from sage import registry
from sage.config import workloads

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "explanation" / "results.md").read_text()
REDUCERS = (ROOT / "docs" / "reference" / "reducers.md").read_text()
PAGES = sorted(path for place in ("*.md", "docs/**/*.md", "benchmarks/*.md") for path in ROOT.glob(place))

ELSEWHERE = {
    "make demo": (".ci/run", " demo "),
    "source .venv/bin/activate": ("Makefile", "-m venv .venv"),
    "pip install -e .": ("Makefile", "-m pip install --quiet --disable-pip-version-check -e"),
    "tensorboard --logdir runs": ("tests/records/test_record.py", "with tensorboard_server(tmp_path) as"),
    "sbatch pararun resnet18-cifar10 --reducer sage --density 0.001": (
        "tests/slurm/test_pararun.py",
        'str(CHECKOUT / "pararun"), *argv',
    ),
    "sbatch pararun --advise resnet18-cifar10": (
        "tests/jobs/test_scripts.py",
        '["--advise", "digits", "--minutes", "1"]',
    ),
    "sage submit jobs/sweeps/digits.toml": ("tests/slurm/test_sweep.py", 'sage("submit", "sweep.toml")'),
    "torchrun --standalone --nproc-per-node 2 train.py": (
        "tests/test_readme.py",
        'line.startswith("torchrun ")',
    ),
    "sage launch --hosts hosts.txt digits --steps 10": (
        "tests/cluster/test_launch.py",
        '[sys.executable, "-m", "sage", "launch", *argv]',
    ),
}
"""Commands that run elsewhere: the file, and its text that runs them."""


def commands() -> list[str]:
    """Return the lines of the README's shell blocks without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def shortened(line: str) -> str:
    """Return the command with two epochs, as in the README's output, which is short enough for a test."""
    trains = line.startswith("sage run") and not re.search("--steps|--help|--print-config", line)
    return f"{line} --epochs 2" if trains else line


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(
    tmp_path: Path, sage_command: str, python_command: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sage").symlink_to(sage_command)
    for name in ("run.sh", "jobs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": python_command,
        "PYTHONPATH": str(ROOT),
    }
    lines = [shortened(line) for line in commands() if line not in ELSEWHERE]
    (run,) = (line for line in lines if line.startswith("sage run"))
    script = "\n".join([*lines, run])  # rerunning an identical configuration is a no-op
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\nwait"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already finished" in done.stderr
    assert re.search(
        r"^digits-ff · topk: finished: runs/digits-ff-topk-[0-9a-f]{8}$", done.stderr, re.MULTILINE
    )
    assert (tmp_path / "runs" / "report.html").exists()


def test_commands_that_other_tests_run_are_still_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(commands())
    for command, (path, text) in ELSEWHERE.items():
        assert text in (ROOT / path).read_text(), command


def scripts() -> list[str]:
    """Return the README's Python blocks: a script, and lines for it."""
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_lines_for_advice_run_in_the_script(tmp_path: Path, python_command: str) -> None:
    script, lines = scripts()
    begin, _, _ = script.partition("model = ")
    assert "minutes=0.1)" in lines
    lines = lines.replace("minutes=0.1", "minutes=0.02")
    (tmp_path / "train.py").write_text(f"{begin}{lines}dist.destroy_process_group()\n")
    done = subprocess.run(
        [python_command, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python_command},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Linear on 2 ranks of 1 node: ") == 2


def test_the_script_runs_unchanged(tmp_path: Path, python_command: str) -> None:
    script, _ = scripts()
    (tmp_path / "train.py").write_text(script)
    (command,) = (line for line in commands() if line.startswith("torchrun "))
    done = subprocess.run(
        [python_command, "-m", "torch.distributed.run", *command.split()[1:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python_command},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    losses, sent = zip(*re.findall(r"loss (\S+) for (\d+) bytes", done.stdout), strict=True)
    assert len(losses) == 2
    assert max(map(float, losses)) < 2
    assert max(map(int, sent)) < 100 * 4 * 650  # less than all gradients in fp32


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    local = [link for link in links if not link.startswith("http")]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_fits_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_the_tables_list_every_reducer_and_workload() -> None:
    (families,) = re.findall(r"^\| family \| reducers .*?\n\n", README, flags=re.DOTALL | re.MULTILINE)
    listed = [
        name
        for row in families.strip().splitlines()[2:]
        for name in re.findall("`([^`]+)`", row.split("|")[2])
    ]
    assert sorted(listed) == sorted(registry.names("reducers"))
    assert f"{len(listed)} gradient compressors" in README
    for name in listed:
        assert f"| `{name}` |" in REDUCERS
    for workload in workloads():
        stem, _, data = workload.rpartition("-")
        assert f"`{workload}`" in README or f"`-{data}`" in README or f"`{stem}-`" in README, workload


def test_the_table_of_quality_has_the_measured_values_of_every_reducer_in_it() -> None:
    quality = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))
    assert quality["table"]() in RESULTS
    for what in ("convex", "cnn"):
        measured = {
            (row["problem"], row["reducer"], row["memory"])
            for row in quality["read"](quality["RESULTS"] / f"quality-{what}.csv")
        }
        names = sorted({reducer for _, reducer, _ in measured})
        assert measured == set(quality["cases"](what, names))
        assert set(names) <= set(quality["reducers"]())
