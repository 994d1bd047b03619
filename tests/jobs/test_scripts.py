"""Tests of the scripts `run.sh`, `pararun` and `prepare_dataset.sh`."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import PATIENCE, free_port, num_steps, outside, until

from sage.records.record import read_metrics

CHECKOUT = Path(__file__).parents[2]

PRINT_ENVIRONMENT = """#!{python}
import json, os, sys
names = ("hostip", "port", "rank", "world_size", "SLURM_PROCID")
names += ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_DEFAULT_ENV")
found = {{name: os.environ[name] for name in names if name in os.environ}}
print(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), **found}}))
"""
"""Replaces Python, and prints how it was called."""

SRUN = """#!{python}
import json, os, signal, subprocess, sys
# Like srun: number the tasks, forward signals, return the highest exit status.
options = [each for each in sys.argv[1:] if each.startswith("--")][: int(os.environ["SRUN_OPTIONS"])]
print(json.dumps({{"srun": options}}), flush=True)
command = sys.argv[1 + len(options) :]
num_tasks = os.environ["SLURM_NTASKS"]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": "0"}})
    for task in range(int(num_tasks))
]
signal.signal(signal.SIGUSR1, lambda number, _: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""

SCONTROL = """#!{python}
import sys
if sys.argv[1:] == ["show", "hostnames", "node[7-8]"]:
    print("node7\\nnode8")
elif sys.argv[1:] == ["--oneliner", "show", "node", "node[7-8]"]:
    print("NodeName=node7 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=node7 Version=22.05.8")
    print("NodeName=node8 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=node8 Version=22.05.8")
elif sys.argv[1:] == ["--oneliner", "show", "job", "31234"]:
    print("JobId=31234 JobName=sage JobState=RUNNING Reason=None Comment=")
elif sys.argv[1] in ("requeue", "update"):
    print(f"scontrol {{' '.join(sys.argv[1:])}}", file=sys.stderr)
else:
    sys.exit(f"scontrol was called with {{sys.argv[1:]}}")
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def first(path: Path) -> dict[str, str]:
    """The environment, with the programs of `path` before all others."""
    return {**outside(), "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}


def call(script: Path, *arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


SCRIPTS = [
    "run.sh",
    "jobs/batch.sh",
    "pararun",
    "prepare_dataset.sh",
    ".ci/run",
    "benchmarks/real_data.sh",
    "benchmarks/images_speech_text.sh",
    "benchmarks/figure.sh",
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_executable_and_passes_shellcheck(name: str) -> None:
    script = CHECKOUT / name
    assert os.access(script, os.X_OK) == (name != "jobs/batch.sh"), "which is only sourced"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", str(script)], cwd=CHECKOUT, check=True)


def test_prepare_dataset_prepares_a_data_set_or_lists_the_names(tmp_path: Path, python_command: str) -> None:
    script, env = CHECKOUT / "prepare_dataset.sh", {**outside(), "PYTHON": python_command}
    assert call(script, "digits", cwd=tmp_path, env=env).returncode == 0
    asked = call(script, cwd=tmp_path, env=env)
    assert asked.returncode == 2
    assert "\n  movielens " in asked.stderr


# run.sh


@pytest.fixture
def print_environment(tmp_path: Path) -> str:
    return str(program(tmp_path / "bin" / "print_environment", PRINT_ENVIRONMENT))


@pytest.mark.parametrize(
    ("arguments", "variables", "called"),
    [
        ([], {}, "run digits --reducer sage --world-size 2"),
        ([], {"workload": "digits-ff", "world_size": "3"}, "run digits-ff --reducer sage --world-size 3"),
        (["lstm-topics"], {}, "run lstm-topics"),
        (["digits", "--density", "0.1"], {"reducer": "topk"}, "run digits --reducer topk --density 0.1"),
        (["--steps", "3"], {"workload": "digits-ff"}, "run digits-ff --steps 3"),
        (["--help"], {}, "run --help"),
        (
            ["--advise", "digits", "--minutes", "1"],
            {"reducer": "topk", "world_size": "2"},
            "advise digits --world-size 2 --minutes 1",
        ),
    ],
)
def test_run_sh_passes_on_its_arguments_and_defaults(
    print_environment: str, tmp_path: Path, arguments: list[str], variables: dict[str, str], called: str
) -> None:
    done = call(
        CHECKOUT / "run.sh",
        *arguments,
        cwd=tmp_path,
        env={**outside(), "PYTHON": print_environment, **variables},
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["argv"] == ["-m", "sage", *called.split()]
    assert output["cwd"] == str(tmp_path)
    assert output["PYTHONPATH"] == str(CHECKOUT)


def test_run_sh_exports_no_variable_that_could_select_one_rank(
    print_environment: str, tmp_path: Path
) -> None:
    done = call(CHECKOUT / "run.sh", cwd=tmp_path, env={**outside(), "PYTHON": print_environment})
    assert not {"hostip", "port", "rank", "world_size"} & set(json.loads(done.stdout))


def test_run_sh_uses_the_python_of_its_venv_else_the_one_on_the_path(tmp_path: Path) -> None:
    home = tmp_path / "a checkout"
    home.mkdir()
    script = Path(shutil.copy(CHECKOUT / "run.sh", home))
    # The check for torch gets the answer that torch is installed.
    has_torch = PRINT_ENVIRONMENT.replace(
        "import json", 'import sys\nif sys.argv[1] == "-c": sys.exit()\nimport json'
    )
    program(tmp_path / "bin" / "python3", has_torch)
    on_path = call(script, "--help", cwd=tmp_path, env=first(tmp_path / "bin"))
    assert json.loads(on_path.stdout)["argv"] == ["-m", "sage", "run", "--help"]
    program(
        home / ".venv" / "bin" / "python", PRINT_ENVIRONMENT.replace("sys.argv[1:]", '"the one beside it"')
    )
    beside = call(script, cwd=tmp_path, env=first(tmp_path / "bin"))
    assert json.loads(beside.stdout)["argv"] == "the one beside it"
    assert json.loads(beside.stdout)["PYTHONPATH"] == str(home)


def test_run_sh_reports_a_python_without_torch(tmp_path: Path) -> None:
    script = Path(shutil.copy(CHECKOUT / "run.sh", tmp_path))
    program(tmp_path / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    done = call(script, cwd=tmp_path, env=first(tmp_path / "bin"))
    assert done.returncode == 2
    assert f"{tmp_path}/bin/python3 has no torch: make {tmp_path}/.venv" in done.stderr


@pytest.mark.slow
def test_four_shells_train_one_run_and_a_killed_one_ends_the_others(
    tmp_path: Path, python_command: str
) -> None:
    meeting = {"hostip": "127.0.0.1", "port": free_port(), "world_size": "4"}
    argv = ["digits-ff", "--epochs", "100000", "--timeout", "100", "--runs", "runs"]
    logs = [tmp_path / f"log-{rank}" for rank in range(4)]
    shells = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            env = {**outside(), **meeting, "PYTHON": python_command, "rank": str(rank)}
            command = ["bash", str(CHECKOUT / "run.sh"), *argv]
            shells.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=file, stderr=file))
    try:
        until(lambda: num_steps(tmp_path / "runs") > 20 or any(s.poll() is not None for s in shells))
        assert [shell.poll() for shell in shells] == [None] * 4, [log.read_text() for log in logs]
        shells[2].kill()
        assert [shell.wait(PATIENCE) for shell in shells] == [1, 1, -signal.SIGKILL, 1]
    finally:
        for shell in shells:
            shell.kill()
            shell.wait()
    for rank in (0, 1, 3):
        output = logs[rank].read_text()
        assert f"sage: rank {rank}: " in output
        assert "Cause: rank 2 does not respond" in output
        assert "Traceback" not in output


# pararun


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script on the first of two nodes, all of them this machine."""
    program(tmp_path / "bin" / "srun", SRUN)
    program(tmp_path / "bin" / "scontrol", SCONTROL)
    return {
        **first(tmp_path / "bin"),
        "SLURM_JOB_ID": "31234",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_SUBMIT_DIR": str(CHECKOUT),
        "SRUN_OPTIONS": "2",
        "PYTHON": str(program(tmp_path / "bin" / "print_environment", PRINT_ENVIRONMENT)),
    }


@pytest.fixture
def spooled(tmp_path: Path) -> Path:
    """The batch script as SLURM runs it: a copy in a folder without run.sh."""
    return Path(shutil.copy(CHECKOUT / "pararun", tmp_path / "slurm_script"))


def test_pararun_starts_a_task_for_each_rank_with_the_rendezvous(
    spooled: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    done = call(spooled, "digits", "--density", "0.1", cwd=tmp_path, env={**cluster, "rank": "7"})
    assert done.returncode == 0, done.stderr
    srun, *ranks = sorted(map(json.loads, done.stdout.splitlines()), key=lambda record: "srun" not in record)
    assert srun == {"srun": ["--kill-on-bad-exit=1", "--distribution=block"]}
    assert {rank["SLURM_PROCID"] for rank in ranks} == {"0", "1"}
    for rank in ranks:
        assert rank["argv"] == ["-m", "sage", "run", "digits", "--density", "0.1"]
        # node7 does not resolve, so SLURM's address of it is used.
        assert rank["hostip"] == "127.0.0.1"
        assert 21234 <= int(rank["port"]) < 21334
        assert "rank" not in rank


def test_pararun_uses_the_variables_of_its_environment(
    spooled: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    variables = {"hostip": "10.1.2.3", "port": "4567", "SLURM_CPUS_PER_TASK": "3", "SRUN_OPTIONS": "3"}
    done = call(spooled, cwd=tmp_path, env={**cluster, **variables})
    srun, *ranks = sorted(map(json.loads, done.stdout.splitlines()), key=lambda record: "srun" not in record)
    assert srun == {"srun": ["--kill-on-bad-exit=1", "--distribution=block", "--cpus-per-task=3"]}
    for rank in ranks:
        assert (rank["hostip"], rank["port"]) == ("10.1.2.3", "4567")
        assert rank["argv"] == ["-m", "sage", "run", "digits", "--reducer", "sage", "--world-size", "2"]


def test_pararun_skips_a_port_that_is_in_use(spooled: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as listener:
        taken = 25000
        while listener.connect_ex(("127.0.0.1", taken)) == 0:
            taken += 1
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        done = call(spooled, cwd=tmp_path, env={**cluster, "SLURM_JOB_ID": str(taken)})
    ports = [json.loads(line)["port"] for line in done.stdout.splitlines() if "port" in line]
    assert ports[0] == ports[1]
    assert int(ports[0]) > taken


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("SLURM_JOB_ID", "SLURM_JOB_ID is not set: call sbatch pararun"),
        ("SLURM_SUBMIT_DIR", "call sbatch in the checkout, or set SAGE_HOME to it"),
    ],
)
def test_pararun_names_what_is_missing(
    spooled: Path, cluster: dict[str, str], tmp_path: Path, missing: str, message: str
) -> None:
    del cluster[missing]
    done = call(spooled, cwd=tmp_path, env=cluster)
    assert done.returncode == 2
    assert message in done.stderr


def test_pararun_activates_an_existing_environment(
    spooled: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(CHECKOUT / "run.sh", home)
    (home / "jobs").mkdir()
    shutil.copy(CHECKOUT / "jobs" / "batch.sh", home / "jobs")
    conda = """#!{python}
import sys
if sys.argv[1:] == ["env", "list"]:
    print("# conda environments:\\n#\\nbase  /opt/conda\\nsage  /opt/conda/envs/sage")
elif sys.argv[1:] == ["shell.bash", "hook"]:
    print('conda() {{ echo "$UNSET" >/dev/null; export CONDA_DEFAULT_ENV=$2; }}')
"""
    program(tmp_path / "bin" / "conda", conda)

    def seen(name: str, **more: str) -> str | None:
        done = call(spooled, cwd=tmp_path, env={**cluster, "SAGE_HOME": str(home), **more})
        assert done.returncode == 0, done.stderr
        found: str | None = json.loads(done.stdout.splitlines()[-1]).get(name)
        return found

    assert seen("CONDA_DEFAULT_ENV") == "sage"
    assert seen("CONDA_DEFAULT_ENV", CONDA_DEFAULT_ENV="mine") == "mine"
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "activate").write_text("export VIRTUAL_ENV=beside\n")
    assert seen("VIRTUAL_ENV") == "beside"


@pytest.mark.parametrize(
    ("names", "node_addresses", "expected"),
    [
        ({"node7": "10.1.0.7"}, "10.9.0.7 10.9.0.8", "10.1.0.7"),
        ({"node7": "2001:db8::7"}, "10.9.0.7 10.9.0.8", "2001:db8::7"),
        ({"node7": "127.0.1.1"}, "10.9.0.7 10.9.0.8", "10.9.0.7"),  # as on Debian
        ({}, "10.9.0.7 10.9.0.8", "10.9.0.7"),
        ({"fqdn7": "10.2.0.7"}, "fqdn7 fqdn8", "10.2.0.7"),
        ({}, "127.0.0.1 10.9.0.8", "10.5.0.1"),
        ({}, "127.0.0.1 127.0.0.1", "127.0.0.1"),  # all nodes are this machine
    ],
)
def test_the_rendezvous_is_an_address_that_the_other_nodes_can_reach(
    cluster: dict[str, str], tmp_path: Path, names: dict[str, str], node_addresses: str, expected: str
) -> None:
    known = " ".join(f"{name}) echo '{address} STREAM {name}' ;;" for name, address in names.items())
    numbers = "1* | 2001*) echo $2 STREAM ;;"
    first, second = node_addresses.split()
    stand_ins = {
        "getent": f"case $2 in {known} {numbers} *) exit 2 ;; esac",
        "hostname": "echo 10.5.0.1 2001:db8::1",
        "scontrol": f"""case "$*" in
"show hostnames node[7-8]") echo node7; echo node8 ;;
*) echo "NodeName=node7 NodeAddr={first} X=1"; echo "NodeName=node8 NodeAddr={second} X=1" ;;
esac""",
    }
    for name, text in stand_ins.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    script = f"source {CHECKOUT / 'jobs' / 'batch.sh'}; sage_set_rendezvous; echo $hostip"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**cluster, "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.slow
def test_a_signal_to_the_batch_script_checkpoints_the_run_and_requeues_the_job(
    spooled: Path, cluster: dict[str, str], tmp_path: Path, python_command: str
) -> None:
    argv = ["digits-ff", "--epochs", "100000", "--runs", str(tmp_path / "runs")]
    log = tmp_path / "log"
    with log.open("w") as file:
        env = {
            **cluster,
            "PYTHON": python_command,
            "SAGE_HOME": str(CHECKOUT),
            "SLURM_SUBMIT_DIR": str(tmp_path),
        }
        job = subprocess.Popen(["bash", str(spooled), *argv], cwd=tmp_path, env=env, stdout=file, stderr=file)
    try:
        until(lambda: num_steps(tmp_path / "runs") > 5 or job.poll() is not None)
        job.send_signal(signal.SIGTERM)
        assert job.wait(PATIENCE) == 75, log.read_text()
    finally:
        job.kill()
        job.wait()
    assert "\nscontrol requeue 31234\n" in log.read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    assert [record["event"] for record in read_metrics(folder) if record["kind"] == "event"] == ["stopped"]
    assert json.loads((folder / "manifest.json").read_text())["environment"]["SLURM_JOB_ID"] == "31234"
