"""Tests of the records of a mount: traffic, a run folder for `sage report`, and diverging replicas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import SEVERAL, Plain, Wrapped, alone, network
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sage
from sage import registry
from sage.comm.replicas import ReplicasDiffer
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.mount.record import KEPT, StepLog
from sage.mount.traffic import Traffic
from sage.mount.whole import ModelMount
from sage.report import report
from sage.report.runs import read_runs

NUMEL = sum(p.numel() for p in network().parameters())


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [("exact", {}, 1.0), ("bf16", {}, 2.0), ("int8", {}, 2.5), ("powersgd", {}, 5.0), ("onebit", {}, 20.0)],
)
def test_compression_distinguishes_methods_that_all_have_a_density_of_1(
    name: str, options: dict[str, Any], least: float
) -> None:
    def work(wire: Wire) -> tuple[Traffic, Traffic, float]:
        model = network()
        mount = ModelMount(model, WholeModel(model, registry.load("reducers", name)(**options)), wire)
        for _ in range(3):
            mount.zero_grad()
            model(torch.ones(2, 1, 8, 8)).sum().backward()
            mount.reduce()
        return mount.last_step, mount.total, mount.density

    for last, total, density in simulate(2, work):
        assert density == 1.0
        assert (last.steps, total.steps, total.skipped) == (1, 3, 0)
        assert last.dense_bytes == 4 * NUMEL
        assert total.dense_bytes == 3 * last.dense_bytes
        assert last.compression == last.dense_bytes / last.payload_bytes >= least
        assert last.wire_sent > 0


def test_traffic_without_bytes_does_not_divide_by_zero() -> None:
    assert Traffic().compression == 1.0
    assert Traffic(1, 1, 0, 400).compression == float("inf")


def train(rank: int, folder: Path) -> dict[str, Any]:
    """Two scripts on two ranks, each recorded after every second step; the traffic of their mounts."""
    seen = {}
    for name, script in {
        "whole": Plain(network(), rank, "exact"),
        "ddp": Wrapped(network(), rank, "topk", density=0.05, ddp={"bucket_cap_mb": SEVERAL}),
    }.items():
        for epoch in range(2):
            script.train(range(2 * epoch, 2 * epoch + 2), close=False)
            script.mount.check_replicas()
            script.mount.record(folder / name, workload="mine", seed=3, accuracy=0.5 + epoch / 10, loss=1.0)
        seen[name] = script.mount.total.payload_bytes
        script.mount.close()
    return seen


def test_sage_report_compares_runs_recorded_by_mounts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted, _ = processes(2, lambda wire: train(wire.rank, tmp_path))
    runs, unreadable = read_runs([tmp_path])
    assert unreadable == {}
    assert sorted(run.config["reducer"] for run in runs) == ["exact", "topk"]
    for run in runs:
        assert run.is_finished
        assert (run.config["workload"], run.config["world_size"], run.config["seed"]) == ("mine", 2, 3)
        figures = run.figures
        assert (figures.metric, figures.better) == ("accuracy", "max")
        assert (figures.steps, figures.final, figures.best) == (4, 0.6, 0.6)
        assert len(run.steps) == 4
        assert len(run.epochs) == 2
        payload = {k: v for k, v in figures.payload_per_step.items() if k not in ("control", "state")}
        assert sum(payload.values()) * 4 == counted["whole" if run.config["reducer"] == "exact" else "ddp"]
    (topk,) = (run for run in runs if run.config["reducer"] == "topk")
    assert topk.config["reducer_options"]["density"] == 0.05
    assert topk.figures.density_asked == pytest.approx(0.05, rel=0.5)
    assert report.main([tmp_path], tmp_path / "report") == 0
    assert "topk" in capsys.readouterr().out
    assert "mine, 2 ranks" in (tmp_path / "report" / "report.md").read_text()


@alone
def test_a_record_is_replaced_by_another_process_but_a_sage_run_never_is() -> None:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    for _ in range(2):
        script = Plain(network(), 0, "topk")
        script.train(range(2), close=False)
        script.mount.record(folder / "a", perplexity=3.0)
        script.mount.close()
    (run,) = read_runs([folder])[0]
    assert len(run.steps) == 2
    assert run.figures.better == "min"
    assert run.config["workload"] == "Sequential"
    (folder / "b").mkdir()
    (folder / "b" / "config.json").write_text(json.dumps({"workload": "digits", "reducer": "topk"}))
    script = Plain(network(), 0, "topk")
    with pytest.raises(ValueError, match="b is the folder of a `sage run`: choose another folder"):
        script.mount.record(folder / "b", loss=1.0)
    with pytest.raises(ValueError, match="record needs at least one metric by name"):
        script.mount.record(folder / "c")
    with pytest.raises(ValueError, match="metric='accuracy' was not given; allowed are loss"):
        script.mount.record(folder / "c", metric="accuracy", loss=1.0)
    script.mount.close()


def test_diverging_replicas_are_named() -> None:
    def work(wire: Wire) -> str:
        script = Plain(network(), wire.rank, "exact")
        script.train(range(1), close=False)
        script.mount.check_replicas()
        if wire.rank == 1:
            with torch.no_grad():
                script.model.get_parameter("4.bias")[3] += 1e-6
        try:
            script.mount.check_replicas()
        except ReplicasDiffer as error:
            return str(error)
        return ""

    for result in processes(2, work):
        assert result.startswith(
            "after step 1: the model of rank 1 differs from that of rank 0, first in 4.bias"
        )


@alone
def test_shards_are_also_recorded_and_compared() -> None:
    import tempfile

    mesh, model = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard")), network()
    fully_shard(model, mesh=mesh["shard"])
    mount = sage.fsdp_hook(model, "topk", density=0.1, replicate=mesh["replicate"])
    model(torch.ones(2, 1, 8, 8)).sum().backward()
    mount.check_replicas()
    folder = Path(tempfile.mkdtemp()) / "sharded"
    mount.record(folder, loss=2.0)
    assert mount.total.steps == 1
    assert mount.last_step.compression > 4
    assert read_runs([folder])[0][0].config["mount"] == "FsdpMount"
    mount.close()


def test_a_long_run_is_kept_in_bounded_memory() -> None:
    log = StepLog()
    from sage.comm.ledger import Ledger

    for _ in range(2 * KEPT + 10):
        log.add(Ledger(), 0.5)
    assert log.count == 2 * KEPT + 10
    assert len(log.since(0)) <= KEPT
    assert [each["step"] for each in log.since(0)][:3] == [0, 4, 8] or log.since(0)[1]["step"] == 2
    assert log.result()["density_had"] == 0.5
