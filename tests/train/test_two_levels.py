"""`--hierarchy node` takes steps that are the same on every rank, and flat if a node has one rank."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import (
    AS_WHOLE,
    SEVERAL,
    SKIPPING,
    Spiked,
    differing,
    everything,
    processes,
    step,
    training,
    weights,
)

from sage.comm.ledger import KINDS
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.testing.harness import same_bits
from sage.train import checkpoint

RESUMED: dict[str, dict[str, Any]] = {
    "exact": {"reducer": "exact", "optimizer": "adam", "lr": 0.01},
    "topk": {"momentum_at": "before", "amp": "fp16", "min_compress": 20},
    "sage": {"reducer": "sage", "reducer_options": {"density": 0.1}},
    "powersgd": {"reducer": "powersgd"},
    "momentum": {"memory": "momentum", "momentum": 0.0, "accumulate": 2},
}

NODE: dict[str, Any] = {"hierarchy": "node", "ranks_per_node": 2}
ONE_A_NODE: list[dict[str, Any]] = [{}, {**NODE, "ranks_per_node": 1}]


def test_with_one_rank_a_node_every_step_and_every_byte_is_that_of_a_flat_run(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, tuple[list[str], bool]]:
        found = {}
        for name, options in AS_WHOLE.items():
            results = []
            for given in ONE_A_NODE:
                before = wire.ledger.copy()
                run = step(training(wire, tmp_path, **options, **given), 3)
                ledger = wire.ledger.since(before)
                results.append(
                    (everything(run), (ledger.payload, ledger.sent, ledger.received, ledger.calls))
                )
            (flat, flat_bytes), (node, node_bytes) = results
            found[name] = differing(flat, node), flat_bytes == node_bytes
        return found

    for found in simulate(3, work):
        assert {name: each for name, each in found.items() if each != ([], True)} == {}


@pytest.mark.parametrize("mount", [{}, SEVERAL], ids=["whole", "ddp"])
def test_exact_on_two_levels_is_flat_up_to_the_order_of_sums(tmp_path: Path, mount: dict[str, Any]) -> None:
    cases: list[dict[str, Any]] = [
        {"reducer": "exact"},
        {"reducer": "exact", "momentum_at": "before", "weight_decay": 0.01, "weight_decay_at": "before"},
        {"reducer": "exact", "clip_global": 0.05, "accumulate": 2, "optimizer": "adam"},
        {"reducer": "topk", "reducer_options": {"density": 1.0}, "memory_lr_ratio": True},
        {"reducer": "topk", "reducer_options": {"density": 1.0}, "memory": "ef21"},
    ]
    if not mount:
        cases.append({"reducer": "exact", "local_steps": 2, "outer_optimizer": "sgd"})

    def work(wire: Wire) -> list[bool]:
        found = []
        for options in cases:
            plain = weights(step(training(wire, tmp_path, **options), 4))
            run = weights(step(training(wire, tmp_path, **options, **mount, **NODE), 4))
            found.append(all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, run, strict=True)))
        return found

    assert (processes if mount else simulate)(4, work) == [[True] * len(cases)] * 4


def test_the_mounts_whole_and_ddp_with_one_bucket_take_the_same_steps_on_two_levels(tmp_path: Path) -> None:
    cases = {name: AS_WHOLE[name] for name in ("exact", "topk, small tensors dense", "sage", "powersgd")}

    def work(wire: Wire) -> dict[str, bool]:
        found = {}
        for name, options in cases.items():
            whole = weights(step(training(wire, tmp_path, **options, **NODE), 3))
            ddp = weights(step(training(wire, tmp_path, **options, **NODE, mount="ddp"), 3))
            found[name] = all(same_bits(a, b) for a, b in zip(whole, ddp, strict=True))
        return found

    for found in processes(4, work):
        assert found == dict.fromkeys(cases, True)


def test_every_rank_has_the_same_parameters_after_each_step(tmp_path: Path) -> None:
    def work(wire: Wire) -> list[torch.Tensor]:
        runs = (training(wire, tmp_path, **options, **NODE) for options in AS_WHOLE.values())
        return [torch.cat([w.view(-1) for w in weights(step(run, 3))]) for run in runs]

    first, *others = simulate(4, work)
    assert all(same_bits(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_a_training_resumes_from_its_checkpoint_bitwise_identically(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, list[str]]:
        found = {}
        for name, options in RESUMED.items():
            never_stopped = everything(step(training(wire, tmp_path / name, **options, **NODE), 6))
            step(training(wire, tmp_path / name, **options, **NODE), 3).save()
            again = training(wire, tmp_path / name, **options, **NODE)
            assert again.resume() == "its own checkpoint"
            found[name] = differing(everything(step(again, 3)), never_stopped)
        return found

    for found in simulate(4, work):
        assert found == {name: [] for name in RESUMED}


def test_a_checkpoint_of_ranks_that_shared_nodes_otherwise_is_refused_in_one_line(tmp_path: Path) -> None:
    def work(wire: Wire) -> str:
        step(training(wire, tmp_path, **NODE), 2).save()
        with pytest.raises(ValueError, match="does not fit this run") as raised:
            training(wire, tmp_path, hierarchy="node", ranks_per_node=4).resume()
        return str(raised.value)

    for rank, text in enumerate(simulate(4, work)):
        assert f"it has part {rank % 2} of 2 of the gradient, and this rank part {rank} of 4: start" in text
        assert "\n" not in text


def test_the_sum_of_the_residuals_of_a_part_goes_on_with_another_number_of_nodes(tmp_path: Path) -> None:
    def residual(run: Any) -> torch.Tensor:
        found = run.mount.flats[0].feedback.residual_N
        assert found is not None
        return found.clone()

    def before(wire: Wire) -> torch.Tensor:
        run = step(training(wire, tmp_path / "before", **NODE), 3)
        run.save()
        if wire.rank == 0:
            (tmp_path / "before" / "config.json").write_text(json.dumps(run.config.to_dict()))
        return residual(run)

    def after(wire: Wire) -> torch.Tensor:
        run = training(wire, tmp_path / "after", continue_from=tmp_path / "before", **NODE)
        assert "the sum of their residuals" in run.resume()
        return residual(run)

    four, two = simulate(4, before), simulate(2, after)
    for part in (0, 1):
        assert torch.equal(two[part], four[part] + four[part + 2])


def test_all_ranks_skip_a_step_that_is_not_finite_on_one_and_restore_all_state(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, tuple[list[str], bool]]:
        found = {}
        for name, options in SKIPPING.items():
            run = training(wire, tmp_path, task=Spiked, non_finite="skip", **options, **NODE)
            assert isinstance(run.task, Spiked)
            run.task.here = wire.rank == 3
            before = everything(step(run, 2))
            after = everything(step(run, 1))
            for state in (before, after):
                del state["/scale/scale"], state["/scale/good"]  # an overflow halves the scale
            found[name] = (
                differing(after, before),
                all(bool(x.isfinite().all()) for x in everything(step(run, 1)).values()),
            )
        return found

    for found in simulate(4, work):
        assert {name: each for name, each in found.items() if each != ([], True)} == {}


def test_the_record_of_a_step_has_the_bytes_within_a_node_and_only_on_two_levels(tmp_path: Path) -> None:
    def work(wire: Wire) -> list[dict[str, Any]]:
        found = []
        for given in ({}, NODE):
            run = training(wire, tmp_path, reducer="exact", epochs=1.0, **given)
            run.take_step(next(run.rest_of_epoch()))
            assert run.pending is not None
            found.append(dict(run.pending[1]))
            run.settle()
        return found

    n = 6 * 16 + 16 + 16 * 3 + 3
    for rank, (flat, node) in enumerate(simulate(4, work)):
        assert not any(name.endswith("in_node") for name in flat)
        own = (n + 1) // 2 if rank % 2 == 0 else n // 2
        assert node["wire_sent_in_node"] == node["wire_received_in_node"] == 4 * n + 8
        assert node["bytes"]["node"] == 4 * n + 4 * own
        assert {kind: node["bytes"][kind] for kind in KINDS if kind in node["bytes"]} == {"values": 4 * own}
        # The rest of the bytes: the all-reduce between two nodes, and loss and stop flag of four ranks.
        assert node["wire_sent"] - node["wire_sent_in_node"] == 4 * own + 24


def test_a_finished_run_has_the_bytes_within_a_node_in_its_result(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[dict[str, Any], int]:
        run = training(wire, tmp_path, epochs=1.0, **NODE)
        assert run.run()
        totals = run.metrics.state_dict()["totals"]
        seconds = torch.ones(4, run.step, dtype=torch.float64)
        return run.metrics.result(seconds, 0.0, metric="accuracy", better="max"), totals["wire_sent_in_node"]

    for result, total in simulate(4, work):
        assert result["wire_sent_in_node_per_step"] == total / 4
        assert result["wire_received_in_node_per_step"] > 0


def test_the_ranks_of_one_host_are_a_node_unless_their_number_is_given(tmp_path: Path) -> None:
    several: list[dict[str, Any]] = [{"hierarchy": "node"}, NODE, {**NODE, "ranks_per_node": 1}, {}]

    def work(wire: Wire) -> list[str]:
        return [training(wire, tmp_path, **options).mount.flats[0].place for options in several]

    for rank, places in enumerate(simulate(4, work)):
        assert places == [f"part {rank} of 4", f"part {rank % 2} of 2", "part 0 of 1", "part 0 of 1"]


def test_the_mount_fsdp_and_reducers_of_squares_are_refused_in_one_line(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        with pytest.raises(ValueError, match="mount 'fsdp', which has --shards for the ranks of a node"):
            training(wire, tmp_path, mount="fsdp", **NODE)
        with pytest.raises(ValueError, match="variance needs the squares"):
            training(wire, tmp_path, reducer="variance", **NODE)

    simulate(2, work)


def test_a_checkpoint_has_the_part_of_each_rank(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        step(training(wire, tmp_path, **NODE), 1).save()

    simulate(4, work)
    path = tmp_path / "checkpoints" / "step-00000001"
    parts = [checkpoint.load_own(path, rank)["feedback"]["/part"] for rank in range(4)]
    assert parts == ["part 0 of 2", "part 1 of 2"] * 2
