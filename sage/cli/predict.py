"""`sage predict`: predict step times at other world sizes and links, from a calibration."""

import json as json_module
from pathlib import Path

from .command import Argument, Command, Option

NOTES = """\
    sage predict calibration.json                                      the links as measured
    sage predict calibration.json --world-size 8 64 --bandwidth 1e9 10e9
    sage predict calibration.json --plan cluster.toml                  clusters that may not exist

With --output it writes prediction.md, prediction.json, step-time.svg and map.svg.
"""


def predict(
    *,
    calibration: Path,
    plan: Path | None,
    world_size: tuple[int, ...],
    ranks_per_node: int | None,
    bandwidth: tuple[float, ...],
    burst: float | None,
    latency: float | None,
    bucket_mb: float,
    steps_ratio: tuple[str, ...],
    json: bool,
    output: Path | None,
) -> int:
    """Print the prediction, and write it into a folder if one is given."""
    from .. import storage
    from ..predict import plan as plans
    from ..predict.calibration import read
    from ..predict.prediction import make, pictures
    from ..predict.table import markdown

    links = (bandwidth or None, burst, latency)
    if plan is not None and (world_size or ranks_per_node is not None or any(x is not None for x in links)):
        raise ValueError(
            "--plan has the world sizes, bandwidths and latencies of its clusters: leave out --world-size, "
            "--ranks-per-node, --bandwidth, --burst and --latency, or --plan"
        )
    if not 0 < bucket_mb <= 1e6:
        raise ValueError(f"--bucket-mb is {bucket_mb:g}; allowed is a number of MiB above 0, up to 1e6")
    try:
        measured = read(calibration)
    except FileNotFoundError as cause:
        raise ValueError(f"there is no file {calibration}; give the JSON file of a calibration") from cause
    if plan is not None:
        setups = plans.read(plan)
    else:
        sizes = world_size or tuple(measured.world_size * factor for factor in (1, 2, 4))
        setups = plans.of_flags(
            sizes,
            bandwidth,
            burst=burst,
            latency=latency,
            ranks_per_node=measured.ranks_per_node if ranks_per_node is None else ranks_per_node,
        )
    ratios = plans.steps_ratios(steps_ratio, {method.reducer for method in measured.methods})
    found = make(measured, setups, bucket_mb, ratios)
    if output is not None:
        from ..report import prediction as drawing

        drawn = pictures(measured, setups, bucket_mb, ratios)
        contents = {
            "prediction.md": markdown(found, everything=True),
            "prediction.json": storage.json_text(found.to_dict(), indent=2) + "\n",
            "step-time.svg": drawing.step_time(drawn),
            "map.svg": drawing.win_map(drawn),
        }
        output.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            storage.write_text(output / name, content)
    if json:
        print(json_module.dumps(json_module.loads(storage.json_text(found.to_dict())), indent=2))
    else:
        print(markdown(found, everything=False), end="")
    return 0


command = Command(
    "predict",
    predict,
    [
        Argument("calibration", Path, "The JSON file of a calibration."),
        Option("plan", Path | None, None, "A TOML file with clusters to predict, as tables [[cluster]]."),
        Option(
            "world_size",
            tuple[int, ...],
            (),
            "Numbers of ranks; default: one, two and four times the calibration's.",
        ),
        Option("ranks_per_node", int | None, None, "Ranks on each node; default: the calibration's."),
        Option(
            "bandwidth",
            tuple[float, ...],
            (),
            "Bandwidths of the links between nodes, in bits per second; default: as measured.",
        ),
        Option(
            "burst",
            float | None,
            None,
            "Bytes that these links pass at once before the bandwidth limits the others; default: 0.",
        ),
        Option("latency", float | None, None, "Their latency in seconds; default: as measured."),
        Option(
            "bucket_mb",
            float,
            25.0,
            "Bucket size of the mount ddp in MiB; at DDP's default of 25, the first bucket has 1 MiB.",
        ),
        Option(
            "steps_ratio",
            tuple[str, ...],
            (),
            "REDUCER=RATIO, such as topk=1.1: its steps to a target over those of bf16; inf: never reached.",
        ),
        Option("json", bool, False, "Print one JSON object instead of the tables."),
        Option("output", Path | None, None, "A folder to write tables, JSON and pictures to."),
    ],
    help="Predict step times at other world sizes and links, from a calibration. Each method under each "
    "mount is compared with overlapped bf16.",
    notes=NOTES,
)
