"""What a cell asks of SLURM: nodes, tasks, GPUs, and sbatch's own options from the table [slurm]."""

import re
from dataclasses import dataclass

from sage.config import Config
from sage.validate import known

Value = str | int | float | bool

RULED_OUT = {
    **dict.fromkeys(
        ("nodes", "ntasks", "ntasks-per-gpu", "nodefile"),
        "world_size and gpus-per-node (on CPUs: ntasks-per-node) say how many nodes and tasks a cell has",
    ),
    **dict.fromkeys(("gpus", "gpus-per-task", "gpus-per-socket"), "say gpus-per-node, one rank for each"),
    **dict.fromkeys(("output", "error", "open-mode"), "`sage logs` shows what a cell has said"),
    **dict.fromkeys(("requeue", "no-requeue"), "a failed cell is requeued at most max_requeues times"),
    "array": "the cells are the array; `parallel` bounds how many of them run at once",
    "job-name": "the jobs are called sage-<suite>",
    "comment": "`sage submit` finds its jobs by it",
    "signal": "the ranks are signalled in time to save themselves",
    "chdir": "a cell runs where it was submitted, and finds runs/ and data/ there",
    "distribution": "rank = k * node + local rank, k being the ranks of a node: the distribution is block",
    **dict.fromkeys(("uid", "gid"), "a job's files are those of the user who submits it"),
    "clusters": "the queue that is looked at is this cluster's",
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
        "it is for sbatch's command line",
    ),
}
"""sbatch's options that would cross what is set here, and why."""

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
"""Seconds before its time limit at which a job is told to save itself."""

TIME = re.compile(r"((?P<days>\d+)-)?(?P<fields>\d+(:\d+){0,2})|unlimited|infinite", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one cell asks for; cells that ask for the same can be one array."""

    nodes: int
    tasks_per_node: int
    options: tuple[tuple[str, Value], ...]
    """sbatch's further options, by their long names."""

    @property
    def cpus_per_task(self) -> str:
        """As [slurm] has it; "" where it does not."""
        return str(dict(self.options).get("cpus-per-task", ""))

    def __str__(self) -> str:
        def several(count: int, noun: str) -> str:
            return f"{count} {noun}{'s' if count > 1 else ''}"

        return f"{several(self.nodes, 'node')} × {several(self.tasks_per_node, 'task')}"


def resources(cell: Config) -> Resources:
    """W ranks at k a node, a task each: k GPUs a node, or k tasks a node where no GPU is asked for."""
    given = {name.replace("_", "-"): value for name, value in cell.slurm.items()}
    if len(given) < len(cell.slurm):
        raise ValueError(
            f"[slurm] has an option twice, with - and with _, among {', '.join(sorted(cell.slurm))}"
        )
    for name, value in given.items():
        _check(name, value)
    kind, gpus = _gpus(given.pop("gpus-per-node", 1), cell)
    per_node = given.pop("ntasks-per-node", gpus or 1)
    if gpus and per_node != gpus:
        raise ValueError(
            f"[slurm] has ntasks-per-node {per_node!r} beside {gpus} GPUs a node; a rank has one GPU: "
            "leave ntasks-per-node out"
        )
    if type(per_node) is not int or per_node < 1:
        raise ValueError(f"[slurm] ntasks-per-node is {per_node!r}; allowed is a whole number above 0")
    if cell.workers_in_process:
        raise ValueError(
            "workers_in_process simulates all ranks in one process, and a job has one for each: leave it out"
        )
    per_node = min(per_node, cell.world_size)
    if cell.world_size % per_node:
        raise ValueError(
            f"world_size {cell.world_size} is no multiple of the {per_node} ranks a node ([slurm] "
            "gpus-per-node, or ntasks-per-node on CPUs); all nodes have as many: change one of the two"
        )
    if gpus:
        given["gpus-per-node"] = f"{kind}{per_node}"
    options = tuple(sorted((name, value) for name, value in given.items() if value is not False))
    return Resources(nodes=cell.world_size // per_node, tasks_per_node=per_node, options=options)


def _check(name: str, value: object) -> None:
    if name in RULED_OUT:
        raise ValueError(f"[slurm] has {name}, which is not yours to set: {RULED_OUT[name]}")
    known("long option of sbatch (in [slurm])", name, ALLOWED.split())
    if not isinstance(value, str | int | float):
        raise ValueError(f"[slurm] {name} is {value!r}; allowed is one text, number, true or false")
    if isinstance(value, str) and (not value or not value.isprintable()):
        raise ValueError(f"[slurm] {name} is {value!r}; allowed is a text of one line, not empty")
    if name in ("time", "time-min"):
        found = None if isinstance(value, bool) else TIME.fullmatch(str(value))
        if not found:
            raise ValueError(
                f"[slurm] {name} is {value!r}; allowed are minutes, as 30, or "
                "[days-]hours:minutes:seconds, as '1:30:00' or '2-0'"
            )
        if 0 < _seconds(found) < 2 * NOTICE:
            raise ValueError(
                f"[slurm] {name} is {value!r}; as a job saves itself and is requeued {NOTICE} seconds before "
                f"its limit, allowed are {2 * NOTICE // 60} minutes and more"
            )
    if name in ("gres", "tres-per-task") and re.search(r"\bgpu\b", str(value)):
        raise ValueError(f"[slurm] {name} is {value!r}; say GPUs as gpus-per-node, one rank for each")


def _gpus(given: Value, cell: Config) -> tuple[str, int]:
    """Of `4` or `a100:4`, as sbatch has them, what stands before the number, and the number; on CPUs 0."""
    if cell.device == "cpu":
        return "", 0
    if found := re.fullmatch(r"((?:[^:]+:)?)(\d+)", str(given)):
        return found[1], int(found[2])
    raise ValueError(
        f"[slurm] gpus-per-node is {given!r}; allowed is a number, as 4, or a kind with it, as 'a100:4'"
    )


def _seconds(time: re.Match[str]) -> int:
    """How long a time is; 0 for no limit."""
    if not time["fields"]:
        return 0
    fields = [int(field) for field in time["fields"].split(":")]
    if time["days"] is None and len(fields) < 3:  # minutes first; after days it is hours
        fields.insert(0, 0)
    hours, minutes, seconds = [*fields, 0, 0][:3]
    return int(time["days"] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
