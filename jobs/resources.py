"""A run's SLURM resources: nodes, tasks, GPUs, and sbatch's options from the table [slurm]."""

import re
from dataclasses import dataclass

from sage.config import Config
from sage.jobs import container
from sage.validate import known

Value = str | int | float | bool

RULED_OUT = {
    **dict.fromkeys(
        ("nodes", "ntasks", "ntasks-per-gpu", "nodefile"),
        "world_size and gpus-per-node (on CPUs: ntasks-per-node) determine a run's nodes and tasks",
    ),
    **dict.fromkeys(("gpus", "gpus-per-task", "gpus-per-socket"), "set gpus-per-node, with one rank per GPU"),
    **dict.fromkeys(("output", "error", "open-mode"), "`sage logs` prints a run's output"),
    **dict.fromkeys(("requeue", "no-requeue"), "a failed run is requeued at most max_requeues times"),
    "array": "the sweep's runs form the array; `parallel` limits how many run at once",
    "job-name": "the jobs' name is sage-<sweep>",
    "comment": "`sage submit` identifies its jobs by it",
    "signal": "SAGE sets it so that the ranks have time to write a checkpoint",
    "chdir": "a run starts in the folder of its submission, where runs/ and data/ are",
    "distribution": "the distribution is block: rank = k * node + local rank, with k ranks per node",
    **dict.fromkeys(("uid", "gid"), "a job's files belong to the user who submits it"),
    "clusters": "SAGE reads the queue of this cluster only",
    **dict.fromkeys(
        (
            "help",
            "ignore-pbs",
            "input",
            "parsable",
            "quiet",
            "test-only",
            "usage",
            "verbose",
            "version",
            "wait",
            "wrap",
        ),
        "it is meant for sbatch's command line",
    ),
}
"""sbatch's options that would conflict with SAGE's own settings, and why."""

ALLOWED = """
account acctg-freq batch bb bbf begin cluster-constraint constraint container container-id contiguous
core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency exclude
exclusive export export-file extra extra-node-info get-user-env gpu-bind gpu-freq gpus-per-node gres
gres-flags hint hold kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu
mem-per-gpu mincpus network nice no-kill nodelist ntasks-per-core ntasks-per-node ntasks-per-socket
oom-kill-step overcommit oversubscribe partition power prefer priority profile propagate qos reboot
reservation resv-ports segment sockets-per-node spread-job stepmgr switches thread-spec threads-per-core
time time-min tmp tres-bind tres-per-task use-min-nodes wait-all-nodes wckey
"""
"""The other long options of sbatch, up to SLURM 25."""

NOTICE = 120
"""Seconds before its time limit at which a job is signalled to write a checkpoint."""

TIME = re.compile(r"((?P<days>\d+)-)?(?P<fields>\d+(:\d+){0,2})|unlimited|infinite", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one run; runs with equal resources can share an array."""

    nodes: int
    tasks_per_node: int
    options: tuple[tuple[str, Value], ...]
    """sbatch's other options, by their long names, and those of the container."""

    @property
    def cpus_per_task(self) -> str:
        """The value in [slurm]; "" if it is not set."""
        return str(dict(self.options).get("cpus-per-task", ""))

    def __str__(self) -> str:
        def several(count: int, noun: str) -> str:
            return f"{count} {noun}{'s' if count > 1 else ''}"

        return f"{several(self.nodes, 'node')} × {several(self.tasks_per_node, 'task')}"


def resources(config: Config) -> Resources:
    """Resources for W ranks, k per node, one task each: k GPUs per node, or k tasks per node without GPUs.

    Raises:
        ValueError: [slurm] has an option that is unknown, reserved or malformed, or W is no multiple of k.
    """
    given = {name.replace("_", "-"): value for name, value in config.slurm.items()}
    if len(given) < len(config.slurm):
        raise ValueError(
            f"[slurm] has an option twice, with - and with _, among {', '.join(sorted(config.slurm))}"
        )
    for name, value in given.items():
        _check(name, value)
    container.check_container(given)
    kind, gpus = _gpus(given.pop("gpus-per-node", 1), config)
    per_node = given.pop("ntasks-per-node", gpus or 1)
    if gpus and per_node != gpus:
        raise ValueError(
            f"[slurm] has ntasks-per-node {per_node!r} and {gpus} GPUs per node; each rank uses one GPU: "
            "leave ntasks-per-node out"
        )
    if type(per_node) is not int or per_node < 1:
        raise ValueError(f"[slurm] ntasks-per-node is {per_node!r}; allowed is a whole number above 0")
    if config.workers_in_process:
        raise ValueError(
            "workers_in_process simulates all ranks in one process, but a job has one process per rank: "
            "leave it out"
        )
    per_node = min(per_node, config.world_size)
    if config.world_size % per_node:
        raise ValueError(
            f"world_size {config.world_size} is not a multiple of the {per_node} ranks per node ([slurm] "
            "gpus-per-node, or ntasks-per-node on CPUs); all nodes need as many ranks: change one of the two"
        )
    if gpus:
        given["gpus-per-node"] = f"{kind}{per_node}"
    options = tuple(sorted((name, value) for name, value in given.items() if value is not False))
    return Resources(nodes=config.world_size // per_node, tasks_per_node=per_node, options=options)


def _check(name: str, value: object) -> None:
    if name in RULED_OUT:
        raise ValueError(f"[slurm] has {name}, which cannot be set there: {RULED_OUT[name]}")
    known("long option of sbatch (in [slurm])", name, [*ALLOWED.split(), *container.OPTIONS])
    if not isinstance(value, str | int | float):
        raise ValueError(f"[slurm] {name} is {value!r}; allowed is one string, number, true or false")
    if isinstance(value, str) and (not value or not value.isprintable()):
        raise ValueError(f"[slurm] {name} is {value!r}; allowed is a non-empty string of one line")
    if name in ("time", "time-min"):
        found = None if isinstance(value, bool) else TIME.fullmatch(str(value))
        if not found:
            raise ValueError(
                f"[slurm] {name} is {value!r}; allowed are minutes, as 30, or "
                "[days-]hours:minutes:seconds, as '1:30:00' or '2-0'"
            )
        if 0 < _seconds(found) < 2 * NOTICE:
            raise ValueError(
                f"[slurm] {name} is {value!r}; allowed are {2 * NOTICE // 60} minutes or more, because a job "
                f"writes a checkpoint and is requeued {NOTICE} seconds before its limit"
            )
    if name in ("gres", "tres-per-task") and re.search(r"\bgpu\b", str(value)):
        raise ValueError(f"[slurm] {name} is {value!r}; request GPUs by gpus-per-node, with one rank per GPU")


def _gpus(given: Value, config: Config) -> tuple[str, int]:
    """Split sbatch's `4` or `a100:4` into the GPU kind's prefix and the number; the number is 0 on CPUs."""
    if config.device == "cpu":
        return "", 0
    if found := re.fullmatch(r"((?:[^:]+:)?)(\d+)", str(given)):
        return found[1], int(found[2])
    raise ValueError(
        f"[slurm] gpus-per-node is {given!r}; allowed is a number, as 4, or kind and number, as 'a100:4'"
    )


def _seconds(time: re.Match[str]) -> int:
    """A time in seconds; 0 means no limit."""
    if not time["fields"]:
        return 0
    fields = [int(field) for field in time["fields"].split(":")]
    if time["days"] is None and len(fields) < 3:  # the first field is minutes; after days it is hours
        fields.insert(0, 0)
    hours, minutes, seconds = [*fields, 0, 0][:3]
    return int(time["days"] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
