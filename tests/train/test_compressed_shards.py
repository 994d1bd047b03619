"""`--shard-reduce` and `--shard-gather`: compression between the shards of a replica, in `sage run`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import (
    TWO_BY_TWO,
    UNITS,
    Spiked,
    differing,
    everything,
    processes,
    step,
    training,
    whole_weights,
)

from sage.comm.ledger import KINDS
from sage.comm.wire import Wire
from sage.storage import write_json

SHARDS: dict[str, Any] = {**UNITS, "shards": 2}
# Two units; each shard has 3 · 16 + 3 and 6 · 16 + 16 elements, halved, or rounded up to rows.
FIRST, LAST = 8 * 6 + 8, 2 * 16 + 2


def test_every_format_trains_close_to_exact_and_the_ledger_has_its_bytes(tmp_path: Path) -> None:
    formats: dict[str, dict[str, Any]] = {
        "exact": {},
        "bf16": {"shard_reduce": "bf16", "shard_gather": "bf16"},
        "fp8": {"shard_reduce": "fp8", "shard_gather": "fp8"},
        "int8": {"shard_reduce": "int8", "shard_gather": "int8", "shard_block": 16},
        "int4": {"shard_reduce": "int4"},
        "loco": {"shard_reduce": "loco"},
        "sdp4bit": {"shard_reduce": "sdp4bit"},
        "sdp4bit, parameters": {"shard_gather": "sdp4bit"},
    }

    def work(wire: Wire) -> dict[str, tuple[float, dict[str, int]]]:
        plain: list[torch.Tensor] = []
        found = {}
        for name, options in formats.items():
            run = training(wire, tmp_path, reducer="exact", **SHARDS, **options)
            before = wire.ledger.copy()
            step(run, 1)
            payload = wire.ledger.since(before).payload
            step(run, 9)
            ours = whole_weights(run)
            plain = plain or ours
            off = max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True))
            found[name] = (
                off,
                {kind: payload[kind] for kind in ("shards", "shard_scales", *KINDS) if payload[kind]},
            )
        return found

    n = FIRST + LAST
    scales = {"int8": 4 * (-(-FIRST // 16) + -(-LAST // 16)), "fp8": 8}
    codes = -(-FIRST // 2) + -(-LAST // 2)
    for found in processes(2, work):
        off, payload = zip(*found.values(), strict=True)
        assert off[0] == 0 < max(off) < 0.2
        values = {"values": 4 * n}  # of the reducer, between replicas: here to itself
        gathered, reduced = 4 * n, 4 * 2 * n
        assert list(payload) == [
            {"shards": gathered + reduced, **values},
            {"shards": 2 * n + 2 * 2 * n, **values},
            {"shards": n + 2 * n, "shard_scales": 3 * scales["fp8"], **values},
            {"shards": n + 2 * n, "shard_scales": 3 * scales["int8"], **values},
            {"shards": gathered + 2 * codes, "shard_scales": 2 * 8, **values},
            {"shards": gathered + 2 * codes, "shard_scales": 2 * 8, **values},
            {"shards": gathered + 2 * (64 + 64) // 2, "shard_scales": 2 * 8, **values},
            {"shards": codes + reduced, "shard_scales": 8, **values},
        ]


RESUMED: dict[str, dict[str, Any]] = {
    "loco": {"shard_reduce": "loco", "shard_gather": "bf16", "accumulate": 2},
    "loco, loss scale": {"shard_reduce": "loco", "amp": "fp16", "min_compress": 20},
    "sdp4bit": {
        "shard_reduce": "sdp4bit",
        "shard_gather": "sdp4bit",
        "reducer": "exact",
        "optimizer": "adam",
        "lr": 0.01,
    },
    "sdp4bit, nodes": {"shard_reduce": "sdp4bit", "shard_node": 2},
    "loco, nodes": {"shard_reduce": "loco", "shard_node": 2},
}


@pytest.mark.parametrize(
    ("world_size", "mount"), [(2, SHARDS), (3, {**UNITS, "shards": 3}), (4, TWO_BY_TWO), (4, {"shards": 4})]
)
def test_a_training_resumes_with_its_errors_bitwise_identically(
    tmp_path: Path, world_size: int, mount: dict[str, Any]
) -> None:
    mount = {**UNITS, **mount}

    def work(wire: Wire) -> dict[str, list[str]]:
        found = {}
        for name, options in RESUMED.items():
            if ("shard_node" in options) != (mount["shards"] == 4):
                continue
            never_stopped = everything(step(training(wire, tmp_path / name, **options, **mount), 5))
            step(training(wire, tmp_path / name, **options, **mount), 3).save()
            again = training(wire, tmp_path / name, **options, **mount)
            assert again.resume() == "its own checkpoint"
            found[name] = differing(everything(step(again, 2)), never_stopped)
            if "loco" in name:
                assert any("/shards/" in key and key.endswith("/codes") for key in never_stopped)
        return found

    for found in processes(world_size, work):
        assert found
        assert {name: names for name, names in found.items() if names} == {}


def test_a_skipped_step_leaves_the_errors_as_they_were(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, tuple[list[str], bool]]:
        found = {}
        cases: list[tuple[str, dict[str, Any]]] = [
            ("loco", {}),
            ("loco", {"amp": "fp16"}),
            ("sdp4bit", {"shard_gather": "sdp4bit"}),
        ]
        for name, options in cases:
            run = training(
                wire, tmp_path, task=Spiked, non_finite="skip", shard_reduce=name, **options, **TWO_BY_TWO
            )
            assert isinstance(run.task, Spiked)
            run.task.here = wire.rank == wire.world_size - 1
            step(run, 2)
            before, states = everything(run), run.mount.state_dict()["shards"]
            steps = [state["step"] for state in states.values()]
            step(run, 1)
            after, states = everything(run), run.mount.state_dict()["shards"]
            for state in (before, after):
                del state["/scale/scale"], state["/scale/good"]  # an overflow halves the scale
            is_kept = [state["step"] for state in states.values()] == steps == [2, 2]
            step(run, 1)
            is_finite = all(bool(x.isfinite().all()) for x in everything(run).values())
            found[f"{name} {options}"] = differing(after, before), is_kept and is_finite
        return found

    for found in processes(4, work):
        assert {name: each for name, each in found.items() if each != ([], True)} == {}


def test_another_number_of_replicas_starts_with_no_errors_and_gathers_whole_parameters(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {**TWO_BY_TWO, "shard_reduce": "loco", "shard_gather": "sdp4bit"}

    def first(wire: Wire) -> None:
        run = training(wire, tmp_path / "first", **options)
        if wire.rank == 0:
            (tmp_path / "first").mkdir()
            write_json(tmp_path / "first" / "config.json", run.config.to_dict())
        step(run, 3).save()

    def then(wire: Wire) -> tuple[list[Any], int]:
        run = training(wire, tmp_path / "then", continue_from=tmp_path / "first", **options)
        assert run.resume()
        found = [(each["errors"], "gathered" in each) for each in run.mount.state_dict()["shards"].values()]
        before = wire.ledger.copy()
        step(run, 1)
        return found, wire.ledger.since(before).payload["shards"]

    processes(4, first)
    codes = -(-FIRST // 2) + -(-LAST // 2)
    for found, sent in processes(2, then):
        assert found == [({"0": {}}, False)] * 2
        assert sent == 4 * (FIRST + LAST) + 2 * codes  # all parameters once


def test_the_schedule_guard_compares_the_collectives_of_both_levels(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[int, int]:
        two_levels: dict[str, Any] = {"shards": 4, "shard_reduce": "sdp4bit", "shard_node": 2}
        options: dict[str, Any] = {**UNITS, **two_levels, "shard_gather": "int8"}
        step(training(wire, tmp_path, reducer="exact", **options), 2)
        return wire.ledger.calls["guard"], sum(wire.ledger.calls.values())

    for guards, calls in processes(4, work, guard=True):
        assert 2 * guards == calls  # every other collective has one
