"""`sage calibrate` in an allocation: its tasks are the ranks, and links between nodes are measured."""

from pathlib import Path

from sage.bench.calibrate.collectives import CALLS
from sage.predict.calibration import read
from slurm.cluster import Cluster

CHECKOUT = Path(__file__).resolve().parents[2]


def test_each_task_of_an_allocation_is_a_rank(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str]
) -> None:
    measure = ("python", "-m", "sage", "calibrate", "digits-ff", "--reducers", "exact", "topk")
    options = ("--seconds", "2", "--steps", "2", "--output", str(tmp_path / "c.json"))
    path = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **forked}
    cluster.run("salloc", "--nodes=4", "srun", *measure, *options, cwd=tmp_path, env=path, timeout=300)
    content = read(tmp_path / "c.json")
    assert (content.world_size, content.ranks_per_node) == (4, 1)
    assert {(each.scope, each.ranks) for each in content.links} == {("inter", 4)}
    assert {each.collective for each in content.links} == set(CALLS)
    assert set(content.methods[0].messages) == {2, 4, 8}
