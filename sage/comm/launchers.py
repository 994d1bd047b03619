"""Every launcher's variables: how each numbers its tasks, and what children must not see.

`sage.comm.rendezvous` reads a rank's place with this table. docs/how-to/launchers.md says it in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One launcher's variables. An empty name is a variable that it does not have."""

    name: str
    """What messages call it."""
    rank: str
    """The task's number among all tasks."""
    size: str = ""
    """The number of tasks. Without one, an outer launcher that counts the same tasks must tell it."""
    local_rank: str = ""
    """The task's number on its node."""
    local_size: str = ""
    """The number of tasks on its node."""
    attempt: str = ""
    """How often all tasks have been started again."""
    sign: str = ""
    """A further variable without which the others are leftovers, or another launcher's."""
    agents: str = ""
    """How many of its own agents have started these tasks, where an outer launcher starts the agents."""
    how: str = "hostip=10.0.0.1 port=29500 in front of it"
    """How its tasks are told where to meet, for messages."""
    sets: tuple[str, ...] = ()
    """All that it sets for its tasks: names, or prefixes that end in `*`."""

    @property
    def variables(self) -> tuple[str, ...]:
        """All of its variables, as names, or as prefixes that end in `*`."""
        own = (self.rank, self.size, self.local_rank, self.local_size, self.attempt, self.sign, self.agents)
        return (*filter(None, own), *self.sets)


TORCHRUN = Launcher(
    name="torchrun",
    rank="RANK",
    size="WORLD_SIZE",
    local_rank="LOCAL_RANK",
    local_size="LOCAL_WORLD_SIZE",
    attempt="TORCHELASTIC_RESTART_COUNT",
    sign="TORCHELASTIC_RUN_ID",
    agents="GROUP_WORLD_SIZE",
    sets=("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "TORCHELASTIC_*"),
)

# SLURM_NTASKS is also there in a batch script, which is one process; the step's own number is not.
SLURM = Launcher(
    name="srun",
    rank="SLURM_PROCID",
    size="SLURM_STEP_NUM_TASKS",
    local_rank="SLURM_LOCALID",
    attempt="SLURM_RESTART_COUNT",
    sets=("SLURM_*", "SLURMD_*", "SRUN_DEBUG", "ENVIRONMENT"),
)

PLAIN = Launcher(
    name="RANK/WORLD_SIZE",
    rank="RANK",
    size="WORLD_SIZE",
    local_rank="LOCAL_RANK",
    local_size="LOCAL_WORLD_SIZE",
    sets=("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"),
)

LAUNCHERS: tuple[Launcher, ...] = (
    TORCHRUN,
    Launcher(
        name="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        how="mpirun -x hostip=10.0.0.1 -x port=29500 sage run",
        sets=("OMPI_*", "ORTE_*", "PRTE_*"),
    ),
    Launcher(
        name="MVAPICH",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_size="MV2_COMM_WORLD_LOCAL_SIZE",
        how="mpirun_rsh ... hostip=10.0.0.1 port=29500 sage run",
        sets=("MV2_COMM_*", "MPISPAWN_*", "MPIRUN_*"),
    ),
    Launcher(
        name="MPICH or Intel MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
        how="mpiexec -genv hostip 10.0.0.1 -genv port 29500 sage run",
        sets=("PMI_*", "PMI2_*", "HYDI_*", "HYDRA_*", "I_MPI_*", "MPIR_CVAR_*"),
    ),
    Launcher(
        name="PALS",
        rank="PALS_RANKID",
        size="PMI_SIZE",
        local_rank="PALS_LOCAL_RANKID",
        local_size="PALS_LOCAL_SIZE",
        sets=("PALS_*",),
    ),
    Launcher(
        name="jsrun",
        rank="JSM_NAMESPACE_RANK",
        size="JSM_NAMESPACE_SIZE",
        local_rank="JSM_NAMESPACE_LOCAL_RANK",
        local_size="JSM_NAMESPACE_LOCAL_SIZE",
        sets=("JSM_*",),
    ),
    Launcher(
        name="Flux",
        rank="FLUX_TASK_RANK",
        size="FLUX_JOB_SIZE",
        local_rank="FLUX_TASK_LOCAL_ID",
        sets=("FLUX_*",),
    ),
    SLURM,
    Launcher(name="PMIx", rank="PMIX_RANK", sets=("PMIX_*",)),
    PLAIN,
)
"""All of them, innermost first: where one has started another, the first that is found numbers the tasks."""

MOST_LOCAL = 1024
"""Ranks that may be asked for on one host: more is a slip of the keyboard, and brings the machine down."""

OWN = ("hostip", "port", "rank", "world_size", "local_rank", "SAGE_SECRET", "SAGE_OUTCOME", "SAGE_MEETING")
"""What `run.sh`, `pararun` and `sage launch` tell a rank."""

SBATCH = (
    *(
        "SBATCH_ARRAY_INX",
        "SBATCH_JOB_NAME",
        "SBATCH_OUTPUT",
        "SBATCH_ERROR",
        "SBATCH_INPUT",
        "SBATCH_EXPORT",
    ),
    *("SBATCH_EXPORT_FILE", "SBATCH_GET_USER_ENV", "SBATCH_OPEN_MODE", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    *("SBATCH_SIGNAL", "SBATCH_WAIT", "SBATCH_WAIT_ALL_NODES"),
)
"""Input of sbatch that would override what a job's own script says of its tasks, logs and requeues."""

KEPT = (
    *(
        "SLURM_CONF",
        "SLURM_CONF_SERVER",
        "SLURM_CLUSTERS",
        "SLURM_JWT",
        "SLURM_TIME_FORMAT",
        "SLURM_DEBUG_FLAGS",
    ),
    "SLURM_BITSTR_LEN",
)
"""Variables of SLURM's own commands, which say nothing about a job."""

SET = tuple(dict.fromkeys(name for one in LAUNCHERS for name in one.variables))
"""All variables that launchers set, as names or as prefixes that end in `*`."""

_NAMES = frozenset(name for name in (*SET, *OWN, *SBATCH) if not name.endswith("*"))
_PREFIXES = tuple(name.removesuffix("*") for name in SET if name.endswith("*"))


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a launcher told this process, for jobs, cells and ranks of other runs.

    What the user says to SLURM's commands stays: SLURM_CONF, SLURM_CLUSTERS, SBATCH_PARTITION, ...

    >>> clean_environment({"HOME": "/h", "RANK": "3", "SLURM_JOB_ID": "7", "SLURM_CONF": "/c", "port": "1"})
    {'HOME': '/h', 'SLURM_CONF': '/c'}
    """
    return {
        name: value
        for name, value in environ.items()
        if name in KEPT or not (name in _NAMES or name.startswith(_PREFIXES))
    }
