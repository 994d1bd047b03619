"""Every entry of the sweep with the language-model study's settings trains, in a network of 8 units."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from gloo import processes
from mounted_runs import step, whole_weights
from torch import Tensor

from sage import registry
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Dataset
from sage.datasets.topics import Topics
from sage.jobs.sweep import read
from sage.records.progress import Display
from sage.records.record import NullRecorder
from sage.testing.harness import same_bits
from sage.train.loop import Training
from sage.train.run import build_model
from sage.train.stop import Stop

SWEEP = Path(__file__).parents[2] / "jobs" / "sweeps" / "ptb-lm-settings.toml"


def settings(config: Config) -> tuple[object, ...]:
    """What an entry trains with, apart from its mount."""
    return config.reducer, config.lr, config.data_options["bptt"], config.model_options["dropout"]


def train(config: Config, data: Dataset, wire: Wire, folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights before and after two steps on one rank."""
    device = torch.device("cpu")
    training = Training(
        config,
        wire,
        model=build_model(config, data, wire, device),
        data=data,
        task=registry.load("tasks", config.task)(data.facts),
        reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
        folder=folder,
        record=NullRecorder(),
        display=Display("", enabled=False),
        stop=Stop(),
    )
    torch.manual_seed(wire.rank)
    before = whole_weights(training)
    after = whole_weights(step(training, 2))
    training.mount.close()
    return before, after


def test_every_entry_takes_steps_and_ddp_gives_the_weights_of_whole(
    tmp_path: Path,
) -> None:
    entries = [config for config in read(SWEEP).configs if config.seed == 1111]
    assert len(entries) == 19
    tiny = [
        replace(config, world_size=2, model_options={**config.model_options, "embedding": 8, "hidden": 8})
        for config in entries
    ]
    # The data do not change what an entry does; the topics need no download.
    texts = {
        bptt: Topics(tmp_path, bptt=int(bptt), limit_train=9000, limit_test=1000)
        for bptt in {str(config.data_options["bptt"]) for config in tiny}
    }

    def work(wire: Wire) -> list[tuple[list[Tensor], list[Tensor]]]:
        return [train(config, texts[str(config.data_options["bptt"])], wire, tmp_path) for config in tiny]

    of_ranks = processes(2, work)
    whole: dict[tuple[object, ...], list[Tensor]] = {}
    for config, here, there in zip(tiny, *of_ranks, strict=True):
        before, after = here
        assert all(map(same_bits, after, there[1])), settings(config)
        assert all(math.isfinite(float(x.norm())) for x in after), settings(config)
        assert not all(map(same_bits, before, after)), settings(config)
        assert all(map(same_bits, after, whole.setdefault(settings(config), after))), settings(config)
    assert {config.mount for config in tiny} == {"whole", "ddp"}
