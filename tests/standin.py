"""A substitute for SLURM: sbatch, squeue, scancel and scontrol that store their state in a folder."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

PROGRAM = '#!/bin/sh\nexec "{python}" -S "{here}" "{home}" {name} "$@"\n'
ACCEPTED = "accepted, but "

Jobs = dict[str, dict[str, Any]]
"""The submitted jobs by id: options, script, the states of the tasks, and the environment of sbatch."""


class StandIn:
    """The programs in `folder / "bin"`, their answers, and a record of their calls."""

    def __init__(self, folder: Path, max_array_size: int = 1001) -> None:
        self.home, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        self.jobs = {}
        (folder / "calls").touch()
        (folder / "max_array_size").write_text(str(max_array_size))
        for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
            text = PROGRAM.format(python=sys.executable, here=__file__, home=folder, name=name)
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    @property
    def path(self) -> str:
        """Return a PATH with these programs first."""
        return f"{self.bin}{os.pathsep}{os.environ['PATH']}"

    def fail(self, name: str, *words: str) -> None:
        """Make a program's next calls fail with these words.

        A call with "" does not fail; a call with "accepted, but ..." fails after it has accepted the job.
        """
        (self.home / f"{name}.fails").write_text(json.dumps(words))

    def calls(self, name: str) -> list[list[str]]:
        """Return the arguments of each call of a program."""
        calls = [json.loads(line) for line in (self.home / "calls").read_text().splitlines()]
        return [argv for called, *argv in calls if called == name]

    @property
    def jobs(self) -> Jobs:
        jobs: Jobs = json.loads((self.home / "jobs").read_text())
        return jobs

    @jobs.setter
    def jobs(self, jobs: Jobs) -> None:
        (self.home / "jobs").write_text(json.dumps(jobs))

    @property
    def states(self) -> dict[str, str]:
        """Return the state of every task."""
        return {task: state for job in self.jobs.values() for task, state in job["states"].items()}

    def set(self, state: str, *tasks: str) -> None:
        """Set the state of tasks; a task that is GONE is no longer in the queue."""
        jobs = self.jobs
        for task in tasks:
            jobs[task.partition("_")[0]]["states"][task] = state
        self.jobs = jobs


def sbatch(home: Path, jobs: Jobs, argv: list[str]) -> str:
    script = Path(argv[0]).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    job = str(len(jobs) + 1)
    last = re.match(r"0-(\d+)", options.get("array", ""))
    tasks = [f"{job}_{index}" for index in range(int(last[1]) + 1)] if last else [job]
    jobs[job] = {
        "options": options,
        "script": script,
        "states": dict.fromkeys(tasks, "PENDING"),
        "environment": dict(os.environ),
        "umask": os.umask(0),
    }
    return f"Submitted batch job {job}"


def squeue(home: Path, jobs: Jobs, argv: list[str]) -> str:
    given = {name: value for name, _, value in (each.removeprefix("--").partition("=") for each in argv)}
    lines = []
    for job, kept in jobs.items():
        if given.get("name", kept["options"]["job-name"]) != kept["options"]["job-name"]:
            continue
        for task, state in kept["states"].items():
            if state == "GONE" or (state == "CANCELLED" and "states" not in given):
                continue
            comment = kept["options"].get("comment", "(null)")
            fields = {"JobArrayID": task, "ArrayJobID": job, "State": state, "Comment": comment}
            fields |= {"RestartCnt": "0", "NodeList": "", "Reason": "Priority"}
            asked = (field.split(":") for field in given["Format"].split(","))
            lines.append("".join(fields[name].ljust(int(width)) for name, width in asked))
    return "\n".join(lines)


def scancel(home: Path, jobs: Jobs, argv: list[str]) -> str:
    for each in argv:
        job, _, inside = each.partition("_")
        spans = [span.partition("-") for span in inside.strip("[]").split(",") if span]
        for task in jobs[job]["states"]:
            index = int(task.partition("_")[2] or 0)
            if not spans or any(int(low) <= index <= int(high or low) for low, _, high in spans):
                jobs[job]["states"][task] = "CANCELLED"
    return ""


def scontrol(home: Path, jobs: Jobs, argv: list[str]) -> str:
    assert argv == ["show", "config"]
    return f"MaxJobCount = 10000\nMaxArraySize            = {(home / 'max_array_size').read_text()}"


def main(home: Path, name: str, *argv: str) -> None:
    """Run as one of the programs."""
    with (home / "calls").open("a") as calls:
        calls.write(json.dumps([name, *argv]) + "\n")
    faults = home / f"{name}.fails"
    words = json.loads(faults.read_text()) if faults.exists() else []
    faults.write_text(json.dumps(words[1:]))
    fault = words[0] if words else ""
    if fault and not fault.startswith(ACCEPTED):
        sys.exit(fault)
    jobs = json.loads((home / "jobs").read_text())
    output = {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "scontrol": scontrol}[name](
        home, jobs, list(argv)
    )
    (home / "jobs").write_text(json.dumps(jobs))
    if fault:
        sys.exit(fault.removeprefix(ACCEPTED))
    if output:
        print(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
