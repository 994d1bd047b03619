"""Tests that `sbatch pararun` trains on one rank per requested GPU, each on its node."""

import json
from pathlib import Path

import pytest
from launcher import PATIENCE

from sage.records.record import read_metrics

from .cluster import Cluster

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "hosts", "gpus"),
    [
        (["--nodes=4", "--gpus-per-node=1"], ["node1", "node2", "node3", "node4"], 1),
        (["--nodes=2", "--gpus-per-node=2"], ["node1", "node1", "node2", "node2"], 2),
        (["--nodes=2", "--ntasks-per-node=1", "--gres=gpu:2"], ["node1", "node2"], 2),
    ],
    ids=["4 nodes x 1", "2 nodes x 2", "as told"],
)
def test_each_rank_runs_on_its_node(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str], options: list[str], hosts: list[str], gpus: int
) -> None:
    argv = ["digits", "--reducer", "sage", "--steps", "6", "--runs", "runs"]
    environment = {"SAGE_HOME": str(CHECKOUT), **forked}
    job = cluster.sbatch(
        *options, "--output=out", str(CHECKOUT / "pararun"), *argv, cwd=tmp_path, env=environment
    )
    ended = cluster.wait(job, PATIENCE)
    output = (tmp_path / "out").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), output
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["world_size"] == len(hosts)
    assert sum(record["kind"] == "step" for record in read_metrics(folder)) == 6
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["hosts"] == hosts
    assert manifest["links"]["bits_per_second"] > 0
    assert manifest["environment"]["SLURM_GPUS_ON_NODE"] == str(gpus)
    assert output.count("finished: ") == 1
    assert not list(tmp_path.glob(".sage-job-*"))


def test_nodes_on_one_machine_use_loopback(loopback: Cluster, tmp_path: Path) -> None:
    argv = ["digits-ff", "--steps", "4", "--runs", "runs"]
    environment = {"SAGE_HOME": str(CHECKOUT)}
    job = loopback.sbatch("--output=out", str(CHECKOUT / "pararun"), *argv, cwd=tmp_path, env=environment)
    assert loopback.wait(job, PATIENCE)["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["hosts"] == ["node1", "node2"]
    assert manifest["environment"]["hostip"] == "127.0.0.1"


def test_tasks_of_srun_alone_form_one_run(cluster: Cluster, tmp_path: Path, forked: dict[str, str]) -> None:
    argv = ["-m", "sage", "run", "digits-ff", "--steps", "4", "--runs", "runs"]
    environment = {"PYTHONPATH": str(CHECKOUT), **forked}
    cluster.run(
        "srun", "--nodes=2", "--ntasks=3", "--overcommit", "python", *argv,
        cwd=tmp_path, env=environment, timeout=PATIENCE,
    )  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(json.loads((folder / "manifest.json").read_text())["hosts"]) == 3
