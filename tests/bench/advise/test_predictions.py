"""Which sizes of buckets `sage advise` predicts, on made-up calibrations."""

from dataclasses import replace

import torch
from made_up_calibration import calibration

from sage.bench.advise.predictions import bucket_sizes, choose
from sage.bench.advise.setups import flags
from sage.bench.loopback_wire import LoopbackWire
from sage.config import Config, load, resolve

CPU = torch.device("cpu")


def configs(**given: float) -> list[Config]:
    options = {"exact": {}, "bf16": {}, "topk": {"density": 0.01}}
    return [
        resolve(load("digits-ff", overrides={"reducer": name, "reducer_options": each, **given}))
        for name, each in options.items()
    ]


def references(numel: int, **given: float) -> list[str]:
    found = configs(**given)
    made_up = calibration(numel=numel)
    methods = tuple(
        replace(method, options=config.to_dict()["reducer_options"])
        for method, config in zip(made_up.methods, found, strict=True)
    )
    setups = choose(replace(made_up, methods=methods), found, LoopbackWire(CPU), flags, CPU)
    return [each.name for each in setups if each.is_dense]


def test_a_model_of_two_buckets_has_a_reference_with_smaller_ones() -> None:
    # 20 layers of a million bytes: one bucket of 1 MiB, and one that is complete when backward ends.
    names = references(250_000)
    assert names[0] in {
        f"--reducer bf16 --mount ddp --bucket-mb {size:g}" for size in bucket_sizes(5_000_000)
    }
    assert names[1:] == ["--reducer bf16 --mount ddp", "--reducer exact --mount ddp"]


def test_a_model_of_many_buckets_keeps_the_default() -> None:
    # Layers of 40 MB are a bucket each, with any size of buckets up to that.
    assert references(10_000_000) == ["--reducer bf16 --mount ddp", "--reducer exact --mount ddp"]


def test_the_size_that_is_given_is_the_one_that_others_have_to_beat() -> None:
    size = bucket_sizes(5_000_000)[1]
    assert references(250_000, bucket_mb=size) == [
        f"--reducer bf16 --mount ddp --bucket-mb {size:g}",
        f"--reducer exact --mount ddp --bucket-mb {size:g}",
    ]
