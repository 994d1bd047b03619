"""Tests that every command in docs/ runs, here in the order of its page or in the named test."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
PROGRAM = (
    r"(?:sage|sbatch|salloc|make|python|PYTHONPATH=\.|pdsh|parallel-ssh|hostip=\S+|tensorboard|torchrun) "
)

OF_THE_PAGE = {
    "explanation/density.md": ("tests/bench/test_density_page.py", "for command in commands():"),
    "how-to/runs-at-a-url.md": ("tests/records/test_upload.py", '"submit", "sweep.toml", "--runs", URL'),
    "tutorials/data-set.md": ("tests/registry/test_adding_a_part.py", '(DOCS / "tutorials" / f"{name}.md")'),
    "tutorials/model.md": ("tests/registry/test_adding_a_part.py", '(DOCS / "tutorials" / f"{name}.md")'),
    "tutorials/task.md": ("tests/registry/test_adding_a_part.py", '(DOCS / "tutorials" / f"{name}.md")'),
    "tutorials/reducer.md": ("tests/test_extension.py", "reducer.md"),
}
"""Pages whose commands another test runs: its file, and its text that reads the page or runs the commands."""

ELSEWHERE = {
    "make demo": (".ci/run", "make --jobs=3 --output-sync --keep-going test lint demo test-plain"),
    "source .venv/bin/activate": ("Makefile", "-m venv .venv"),
    "PYTHONPATH=. python tests/comm/test_ledger.py": ("tests/comm/test_ledger.py", "    main()\n"),
    "tensorboard --logdir runs": ("tests/records/test_record.py", "with tensorboard_server(tmp_path) as"),
    "sage run digits --track wandb": ("tests/records/test_trackers.py", 'config_of(tmp_path, "wandb")'),
    "sage run digits --track mlflow": ("tests/records/test_trackers.py", 'config_of(tmp_path, "mlflow")'),
    "sage run digits --track wandb mlflow": ("tests/records/test_trackers.py", "range(20)"),
    "sinfo --summarize": ("tests/slurm/test_tutorial.py", 'line.startswith("sinfo ")'),
    "sacctmgr --noheader show associations user=$USER format=account": (
        "tests/slurm/test_tutorial.py",
        'line.startswith("sacctmgr ")',
    ),
    "salloc --account=my-account --partition=debug --nodes=2 sage doctor": (
        "tests/slurm/test_tutorial.py",
        'line.startswith("salloc ")',
    ),
    "sage submit sweep.toml": ("tests/slurm/test_sweep.py", 'sage("submit", "sweep.toml")'),
    "sage launch --hosts hosts.txt digits --steps 10": (
        "tests/cluster/test_launch.py",
        '[sys.executable, "-m", "sage", "launch", *argv]',
    ),
    "sage launch --hosts hosts.txt digits": (
        "tests/cluster/test_launch.py",
        '[sys.executable, "-m", "sage", "launch", *argv]',
    ),
    "sage launch --hosts hosts.txt --advise digits": (
        "tests/cluster/test_launch.py",
        "--advise --python {python} --port 4567 0 0",
    ),
    "sage bench compress --mib 1 10 --traces resnet20.pt --output compress": (
        "tests/bench/test_compress.py",
        '"--mib", "0.01", "--traces", str(tmp_path / "trace.pt")',
    ),
    "sage run digits --world-size 8 --epochs 20 --continue-from runs/digits-sage-1a2b3c4d": (
        "tests/train/test_resume.py",
        'world_size=now, continue_from=tmp_path / "before"',
    ),
    "sage submit grid.toml --dry-run": ("tests/jobs/test_submit.py", 'call(sweep, "--dry-run")'),
    "sage submit grid.toml": ("tests/slurm/test_sweep.py", 'sage("submit", "sweep.toml")'),
    "sage submit jobs/sweeps/sage-tables-reduced.toml": (
        "tests/slurm/test_sweep.py",
        'sage("submit", "sweep.toml")',
    ),
    "sage published sage --runs runs/sage-tables-reduced": (
        "tests/report/test_published_own_runs.py",
        'main(["published", "sage", "--runs", str(tmp_path)])',
    ),
    "sage status grid.toml --watch": ("tests/jobs/test_status.py", 'call("status", str(runs), "--watch")'),
    "sage logs RUN --follow": (
        "tests/jobs/test_logs.py",
        '"sage", "logs", "digits-ff-topk", "--runs", str(runs), "--follow"]',
    ),
    "sage cancel grid.toml": ("tests/slurm/test_sweep.py", 'sage("cancel", "sweep.toml")'),
    "sage submit sweep.toml --runs before": ("tests/slurm/test_sweep.py", 'sage("submit", "sweep.toml")'),
    "sage submit sweep.toml --runs after": ("tests/slurm/test_sweep.py", 'sage("submit", "sweep.toml")'),
    "sage compare before after": ("tests/report/test_compare.py", 'call("compare", a, b)'),
    "sage compare results/main results/branch --factor 1.1": (
        "tests/report/test_compare.py",
        '"--factor", "1.3"',
    ),
    "sage doctor": ("tests/cluster/test_doctor.py", 'sage("doctor", "--ranks", "2")'),
    "sage doctor --hosts hosts.txt": ("tests/cluster/test_doctor.py", '("doctor", "--hosts", "hosts"'),
    "salloc --nodes=4 sage doctor": (
        "tests/slurm/test_doctor.py",
        'cluster.run("salloc", "--nodes=4", *command',
    ),
    "salloc --nodes=4 srun sage calibrate resnet20-cifar10": (
        "tests/slurm/test_calibrate.py",
        'cluster.run("salloc", "--nodes=4", "srun"',
    ),
    "make cluster": ("tests/slurm/test_cluster.py", "[[str(CLUSTER)], "),
    "make cluster NODES=2 RATE=100mbit": ("tests/slurm/conftest.py", 'rate="100mbit"'),
}
"""Commands that run elsewhere: the file, and its text that runs them, with other names of files and runs."""

STARTS = {
    "sbatch ": ("tests/slurm/test_pararun.py", 'str(CHECKOUT / "pararun"), *argv'),
    "hostip=10.0.0.1 ": ("tests/jobs/test_scripts.py", '["bash", str(CHECKOUT / "run.sh"), *argv]'),
    "pdsh ": ("tests/cluster/test_launch.py", '["pdsh", "parallel-ssh"]'),
    "parallel-ssh ": ("tests/cluster/test_launch.py", '["pdsh", "parallel-ssh"]'),
    "python benchmarks/": ("tests/test_readme.py", 'runpy.run_path(str(ROOT / "benchmarks"'),
    "sage bench record resnet20-cifar10 ": ("tests/bench/test_density_page.py", "assert main(given) == 0"),
    "sage run gpt-char-cpu-shakespeare ": (
        "tests/train/test_gpt_run.py",
        "exact --optimizer muon --lr 0.02 --adamw-lr 1e-3",
    ),
    "sage bench compress [": ("tests/bench/test_compress.py", '["bench", "compress", '),
}
"""The same for commands with this beginning."""


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks, and the indented lines that begin with a program."""
    text = PAGES[page].replace("\\\n", " ")
    fenced = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(rf"^    ({PROGRAM}.*)$", outside, flags=re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()] + indented
    bare = [re.sub(r"(?<!\S)#.*", "", line).strip() for line in lines]
    return [line for line in bare if line]


def elsewhere(line: str) -> str | None:
    """Return the file of the test that runs a command that is not run here."""
    starts = (to for begin, to in STARTS.items() if line.startswith(begin))
    return (ELSEWHERE.get(line) or next(starts, (None, "")))[0]


def own(page: str) -> list[str]:
    """Return the commands of a page that run here."""
    return [] if page in OF_THE_PAGE else [line for line in commands(page) if elsewhere(line) is None]


def test_the_named_tests_contain_the_command_they_are_named_for() -> None:
    for command, (path, text) in {**OF_THE_PAGE, **ELSEWHERE, **STARTS}.items():
        assert text in (ROOT / path).read_text(encoding="utf-8"), command


def test_every_named_command_is_on_a_page() -> None:
    shown = {line for page in PAGES for line in commands(page)}
    assert set(ELSEWHERE) <= shown
    for begin in STARTS:
        assert any(line.startswith(begin) for line in shown), begin


def shortened(line: str) -> str:
    """Return the command with a measurement that is short enough for a test."""
    return re.sub(r"--minutes \S+", "--minutes 0.05", re.sub(r"--seconds \S+", "--seconds 1", line))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if own(page)])
def test_the_commands_of_a_page_run_in_their_order(
    page: str, tmp_path: Path, sage_command: str, python_command: str
) -> None:
    places = {
        "sage": f'exec {sage_command} "$@"',
        "torchrun": f'exec {python_command} -m torch.distributed.run "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, line in places.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "run.sh").symlink_to(ROOT / "run.sh")
    model = re.search(
        r"^`linear\.py`.*?```python\n(.*?)^```", PAGES["tutorials/model.md"], re.DOTALL | re.MULTILINE
    )
    assert model
    (tmp_path / "linear.py").write_text(model[1])
    files = {
        "tutorials/slurm-sweep.md": "sweep.toml",
        "how-to/compare-on-your-model.md": "mine.toml",
        "how-to/predict.md": "cluster.toml",
    }
    files["how-to/time-to-target.md"] = "sweep.toml"
    if page in files:
        (block,) = re.findall(r"^```toml\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
        (tmp_path / files[page]).write_text(block)
    if page in ("tutorials/script.md", "how-to/optimizers-that-communicate.md"):
        (block,) = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
        (tmp_path / "train.py").write_text(block)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*map(shortened, own(page)), "wait"])],
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHON": python_command,
            "PYTHON_EXEC": python_command,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in re.findall(r"^```text\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE):
        for row in line.splitlines():  # a run's name, its settings and its state; the rest differs
            name, *_ = row.split()
            found = re.search(rf"^{shlex.quote(name)} .*\bfinished\b", done.stdout, re.MULTILINE)
            assert found, f"{row}\n{done.stdout}"


def test_no_text_gives_a_flag_the_values_true_or_false() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in (".md", ".py", ".sh", ".toml") and path.is_file():
            found += [
                f"{name}: {flag[0]}"
                for line in path.read_text(encoding="utf-8").splitlines()
                if "pcluster" not in line  # its flags take these values
                for flag in re.finditer(r"--[a-z][a-z0-9.-]+ (?:true|false)\b", line)
            ]
    assert found == [], "a flag without a value is given as --NAME, or --no-NAME"
