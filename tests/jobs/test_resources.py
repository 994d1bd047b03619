"""Tests that the SLURM resources of a run fit its ranks, or are refused before sbatch is called."""

from typing import Any

import pytest

from sage.config import Config, load, resolve
from sage.jobs.resources import resources


def cell(world_size: int, device: str = "auto", **slurm: Any) -> Config:
    overrides = {"world_size": world_size, "device": device, "slurm": slurm}
    return resolve(load("digits-ff", overrides=overrides))


@pytest.mark.parametrize(
    ("config", "nodes", "tasks", "gpus"),
    [
        (cell(4), 4, 1, "1"),
        (cell(8, gpus_per_node=4), 2, 4, "4"),
        (cell(8, **{"gpus-per-node": "a100:4"}), 2, 4, "a100:4"),
        (cell(2, **{"gpus-per-node": "a100:4"}), 1, 2, "a100:2"),
        (cell(4, gpus_per_node=0), 4, 1, None),
        (cell(4, "cpu", gpus_per_node=2), 4, 1, None),
        (cell(4, "cpu", ntasks_per_node=2), 2, 2, None),
        (cell(3, "cpu", ntasks_per_node=8), 1, 3, None),
    ],
)
def test_a_run_has_a_task_for_each_rank_and_a_gpu_for_each_task(
    config: Config, nodes: int, tasks: int, gpus: str | None
) -> None:
    asked = resources(config)
    assert (asked.nodes, asked.tasks_per_node, dict(asked.options).get("gpus-per-node")) == (
        nodes,
        tasks,
        gpus,
    )
    assert asked.nodes * asked.tasks_per_node == config.world_size


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (cell(6, gpus_per_node=4), "world_size 6 is not a multiple of the 4 ranks per node"),
        (cell(4, gpus_per_node="many"), "gpus-per-node is 'many'; allowed is a number"),
        (cell(4, gpus_per_node=2, ntasks_per_node=4), "ntasks-per-node 4 and 2 GPUs per node"),
        (cell(4, gres="gpu:2"), "gres is 'gpu:2'; request GPUs by gpus-per-node"),
        (cell(4, nodes=2), "has nodes, which cannot be set there: world_size and gpus-per-node"),
        (cell(4, output="x"), "has output, which cannot be set there: `sage logs`"),
        (cell(4, partiton="x"), "no long option of sbatch .* is called 'partiton'; did you mean 'partition'"),
        (cell(4, time="soon"), "time is 'soon'; allowed are minutes, as 30"),
        (cell(4, time=3), "time is 3; allowed are 4 minutes or more"),
        (
            cell(4, time_min="3:59"),
            "time-min is '3:59'; allowed are 4 minutes or more",
        ),
        (
            cell(4, time="0:3:59"),
            "time is '0:3:59'; allowed are 4 minutes or more",
        ),
        (cell(4, mem=["1G"]), "mem is .*; allowed is one string"),
    ],
)
def test_options_that_sbatch_would_reject_are_refused_before_submission(config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resources(config)


@pytest.mark.parametrize(
    "time", [4, "30", "4:00", "0:4:00", "1:00:00", "0-1", "0-0:4", "2-12:30:00", 0, "UNLIMITED"]
)
def test_a_time_limit_has_the_format_of_sbatch(time: int | str) -> None:
    assert dict(resources(cell(1, time=time)).options)["time"] == time
