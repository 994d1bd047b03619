"""`sage run --hierarchy node` on two nodes of two ranks, whose host names say which ranks share a node."""

import json
from pathlib import Path

from launcher import PATIENCE

from sage.records.record import read_metrics
from slurm.cluster import Cluster

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_ranks_of_a_node_share_its_part_of_the_traffic(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str]
) -> None:
    environment = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **forked}

    def run(*options: str) -> None:
        argv = ["-m", "sage", "run", "digits-ff", "--reducer", "exact", "--steps", "4", "--runs", "runs"]
        cluster.run(
            "srun", "--nodes=2", "--ntasks-per-node=2", "--overcommit", "python", *argv, *options,
            cwd=tmp_path, env=environment, timeout=PATIENCE,
        )  # fmt: skip

    run("--hierarchy", "node")
    run()
    runs = {}
    for folder in (tmp_path / "runs").iterdir():
        config = json.loads((folder / "config.json").read_text())
        steps = [record for record in read_metrics(folder) if record["kind"] == "step"]
        hosts = json.loads((folder / "manifest.json").read_text())["hosts"]
        runs[config.get("hierarchy", "flat")] = hosts, steps
    (hosts, node), (_, flat) = runs["node"], runs["flat"]
    assert hosts == ["node1", "node1", "node2", "node2"]
    n = flat[1]["bytes"]["values"] // 4
    # Rank 0 sends half of the gradient within its node, twice, and 8 bytes; the other half between nodes.
    assert {step["wire_sent_in_node"] for step in node} == {4 * n + 8}
    assert node[1]["wire_sent"] - node[1]["wire_sent_in_node"] == 4 * -(-n // 2) + 24
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(node, flat, strict=True)) < 1e-5
