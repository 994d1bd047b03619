"""Compares the verdicts of `sage advise` with exhaustive measurements, on clusters with throttled links.

For each workload and link speed, the script starts a SLURM cluster on this machine (allocation.py), runs
`sage advise` there, and then measures the steps of every candidate in turns, the ten fastest of them twice
(cluster_steps.py); the second measurement decides which one is the fastest. The result says by how much the
recommended set-up is slower than the fastest one, and whether the verdict is "nothing pays" exactly where no
candidate's interval lies above 1.

The measurements are kept in a folder. What is in it is not measured again.

    python benchmarks/advise_error.py --workloads resnet20-cifar10 lstm-topics > advise_error.json
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from allocation import CHECKOUT, MACHINE, SAGE, STEPS, allocation, folder_name

from sage.bench.advise import DENSITIES, REDUCERS
from sage.bench.advise.setups import REFERENCES
from sage.report.paired_ratio import paired_ratio


def measure(workload: str, rate: str, folder: Path, given: argparse.Namespace) -> None:
    """Run `sage advise`, measure all candidates, and write both results to the folder."""
    command = shlex.split(workload)
    densities = map(str, DENSITIES)
    with allocation(given.world_size, rate) as run:
        printed = run(*SAGE, "advise", *command, "--json", "--minutes", str(given.minutes))
        options = ("--seconds", "20", "--steps", "5", "--together", "--trial-seconds", str(given.seconds))
        options += ("--again", "10", "--other-buckets")
        output = ("--output", str(folder.resolve()))
        run(*STEPS, *command, *options, "--reducers", *REDUCERS, "--densities", *densities, *output)
    described = {"workload": workload, "rate": rate, "verdict": json.loads(printed)}
    (folder / "verdict.json").write_text(json.dumps(described, indent=2))


def compared(folder: Path) -> dict[str, Any]:
    """Return the verdict beside the exhaustive measurement in a folder."""
    described = json.loads((folder / "verdict.json").read_text())
    steps = json.loads((folder / "steps.json").read_text())
    verdict = described["verdict"]
    candidates = exhaustive(steps["rows"])
    fastest = candidates[0]
    (named,) = [row for row in candidates if row["name"] == verdict["recommended"]["name"]]
    pays = [row["name"] for row in candidates if row["interval"] is not None and row["interval"][0] > 1]
    return {
        "workload": described["workload"],
        "rate": described["rate"],
        "load_before": steps["load"],
        "verdict": verdict["word"],
        "recommended": named["name"],
        "its_speedup_by_advise": [
            round(verdict["recommended"][name], 3) for name in ("speedup", "speedup_low", "speedup_high")
        ],
        "fastest": fastest["name"],
        "recommended_over_fastest": round(named["seconds"] / fastest["seconds"], 3),
        "is_within_5_percent": named["seconds"] <= 1.05 * fastest["seconds"],
        "num_that_pay": len(pays),
        "word_agrees": (verdict["word"] == "pays") == bool(pays),
        "candidates": candidates,
    }


def exhaustive(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return all measured set-ups that overlap or compress, with their speed-ups, the fastest first.

    The order is that of the second measurement; what has none follows.

    The speed-up is that over the faster dense set-up that overlaps, as in `sage.bench.advise.judge`.
    """
    dense = [row for row in rows if row["reducer"] in REFERENCES and row["mount"] == "ddp"]
    base = min(dense, key=lambda row: median(row["seconds"]))
    found = []
    for row in rows:
        if row["reducer"] in REFERENCES and row["mount"] != "ddp":
            continue
        ratio = paired_ratio(dict(enumerate(base["seconds"])), dict(enumerate(row["seconds"])))
        compresses = row["reducer"] not in REFERENCES
        found.append(
            {
                "name": row["name"],
                "seconds": median(row["again"] or row["seconds"]),
                "rounds": len(row["again"] or row["seconds"]),
                "is_a_second_measurement": row["again"] is not None,
                "speedup": ratio.centre,
                "interval": ratio.interval if compresses else None,
            }
        )
    return sorted(found, key=lambda row: (not row["is_a_second_measurement"], row["seconds"]))


def main() -> None:
    """Measure what the folder lacks, and print the comparison of everything in it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workloads", nargs="*", default=["digits"], help="each with options, quoted")
    parser.add_argument("--rates", nargs="+", default=["10mbit", "100mbit", "1gbit"])
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5, help="as of `sage advise`")
    parser.add_argument("--seconds", type=float, default=60, help="for the rounds of all candidates")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "build" / "advise_error")
    given = parser.parse_args()
    for workload in given.workloads:
        for rate in given.rates:
            folder = given.folder / folder_name(workload, given.world_size, rate)
            if not (folder / "verdict.json").exists():
                measure(workload, rate, folder, given)
                print(folder.name, "measured", file=sys.stderr, flush=True)
    found = [compared(path.parent) for path in sorted(given.folder.glob("*/verdict.json"))]
    result = {
        "num": len(found),
        "num_within_5_percent": sum(each["is_within_5_percent"] for each in found),
        "num_words_agree": sum(each["word_agrees"] for each in found),
        "machine": MACHINE,
        "comparisons": found,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
