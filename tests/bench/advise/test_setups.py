"""Which set-ups `sage advise` verifies, and the options of `sage run` that choose them."""

from dataclasses import fields, replace
from typing import Any

from sage.bench.advise.setups import (
    NUM_CANDIDATES,
    candidates,
    flags,
    script_line,
    with_half_sums,
)
from sage.config import Config, load, resolve
from sage.predict.grid import Row


def config(reducer: str, **options: Any) -> Config:
    return resolve(load("digits-ff", overrides={"reducer": reducer, "reducer_options": options}))


def row(of: Config, mount: Any, seconds: float, bucket_mb: float | None = None) -> Row:
    values: dict[str, Any] = {field.name: None for field in fields(Row)}  # but for what the choice reads
    values |= {
        "reducer": of.reducer,
        "options": of.to_dict()["reducer_options"],
        "mount": mount,
        "bucket_mb": bucket_mb,
        "seconds": seconds,
        "verdict": "dense" if of.reducer in ("exact", "bf16") else "pays",
    }
    return Row(**values)


CONFIGS = [
    *(config("exact"), config("bf16"), config("topk", density=0.01), config("topk", density=0.001)),
    *(config("onebit"), config("int8"), config("qsgd")),
]
SECONDS = (1.2, 1.0, 0.5, 0.4, 0.9, 0.8, 0.7)
ROWS = [
    row(of, mount, seconds + (0.05 if mount == "ddp" else 0.0))
    for of, seconds in zip(CONFIGS, SECONDS, strict=True)
    for mount in ("whole", "ddp")
]


def test_both_dense_set_ups_and_the_fastest_three_reducers_are_verified() -> None:
    found = candidates(ROWS, CONFIGS)
    assert [(each.config.reducer, each.config.mount) for each in found] == [
        *(("bf16", "ddp"), ("exact", "ddp")),
        *(("topk", "whole"), ("qsgd", "whole"), ("int8", "whole")),
    ]
    assert len([each for each in found if not each.is_dense]) == NUM_CANDIDATES


def test_other_buckets_are_a_further_reference_if_they_are_predicted_to_be_clearly_faster() -> None:
    exact, bf16, topk = CONFIGS[:3]
    slightly = [row(bf16, "ddp", 1.04, 0.5), row(exact, "ddp", 1.3, 0.5), row(topk, "ddp", 0.495, 0.5)]
    assert candidates([*ROWS, *slightly], CONFIGS) == candidates(ROWS, CONFIGS)
    clearly = [row(bf16, "ddp", 0.9, 0.5), row(bf16, "ddp", 0.8, 0.1), row(topk, "ddp", 0.2, 0.5)]
    found = candidates([*ROWS, *clearly], CONFIGS)
    assert [each.name for each in found] == [
        "--reducer bf16 --mount ddp --bucket-mb 0.1",
        "--reducer bf16 --mount ddp",
        "--reducer exact --mount ddp",
        "--reducer topk --density 0.01 --mount ddp --bucket-mb 0.5",
        "--reducer qsgd --mount whole",
        "--reducer int8 --mount whole",
    ]
    assert [each.is_dense for each in found] == [True] * 3 + [False] * 3


def test_between_several_ranks_the_all_reduce_of_pytorchs_hook_is_a_reference_too() -> None:
    found = with_half_sums(candidates(ROWS, CONFIGS), flags)
    assert [(each.name, each.is_dense) for each in found[:4]] == [
        ("--reducer bf16 --mount ddp", True),
        ("--reducer exact --mount ddp", True),
        ("--reducer bf16 --sums half --mount ddp", True),
        ("--reducer topk --density 0.001 --mount whole", False),
    ]
    assert len(found) == NUM_CANDIDATES + 3


def test_a_set_up_has_the_options_and_the_mount_of_its_prediction() -> None:
    topk = next(each for each in candidates(ROWS, CONFIGS) if each.config.reducer == "topk")
    assert topk.config.reducer_options["density"] == 0.001
    assert (topk.config.mount, topk.predicted_seconds) == ("whole", 0.4)


def test_flags_name_what_differs_from_the_defaults() -> None:
    assert flags(config("topk", density=0.001)) == "--reducer topk --density 0.001 --mount whole"
    assert flags(replace(config("onebit"), mount="ddp")) == "--reducer onebit --mount ddp"
    assert flags(config("onebit", scaling=False)) == "--reducer onebit --no-scaling --mount whole"


def test_the_line_of_a_script_names_the_same() -> None:
    assert script_line(config("topk", density=0.001)) == "sage.reduce_model(model, 'topk', density=0.001)"
    assert script_line(replace(config("bf16"), mount="ddp")) == "sage.ddp_hook(model, 'bf16')"
    assert script_line(replace(config("bf16"), mount="ddp", bucket_mb=0.5)) == (
        "sage.ddp_hook(model, 'bf16'), with DistributedDataParallel(..., bucket_cap_mb=0.5)"
    )
