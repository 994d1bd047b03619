"""The environment variables of each launcher: its tasks' ranks, and all that other runs must not inherit.

`sage.comm.rendezvous` uses this table to read a rank's place. docs/how-to/launchers.md describes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The variables of one launcher. An empty name means that the launcher does not set the variable."""

    name: str
    """The launcher's name in messages."""
    rank: str
    """The variable with the task's rank among all tasks."""
    size: str = ""
    """The variable with the number of tasks. If empty, an outer launcher of the same tasks must set it."""
    local_rank: str = ""
    """The variable with the task's rank on its node."""
    local_size: str = ""
    """The variable with the number of tasks on the node."""
    attempt: str = ""
    """The variable with the number of restarts of all tasks."""
    sign: str = ""
    """A variable that must also be set; without it the others are stale or belong to another launcher."""
    agents: str = ""
    """The variable with the number of the launcher's agents, if an outer launcher starts the agents."""
    how: str = "hostip=10.0.0.1 port=29500 in front of it"
    """How to give the tasks the rendezvous address, for messages."""
    sets: tuple[str, ...] = ()
    """Other variables that the launcher sets for its tasks: names, or prefixes that end in `*`."""

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables of the launcher, as names or as prefixes that end in `*`."""
        names = (self.rank, self.size, self.local_rank, self.local_size, self.attempt, self.sign, self.agents)
        return (*filter(None, names), *self.sets)


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

# A batch script, which is a single process, has SLURM_NTASKS too, but not SLURM_STEP_NUM_TASKS.
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
"""All launchers, innermost first: if one launcher has started another, the first match gives the rank."""

MOST_LOCAL = 1024
"""Maximum number of ranks on one host; a larger number is a typing error and would overload the machine."""

OWN = ("hostip", "port", "rank", "world_size", "local_rank", "SAGE_SECRET", "SAGE_OUTCOME", "SAGE_MEETING")
"""Variables that `run.sh`, `pararun` and `sage launch` set for a rank."""

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
"""Input variables of sbatch that would override a job script's options for tasks, logs and requeues."""

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
"""Variables that configure SLURM's commands and do not describe a job."""

SET = tuple(dict.fromkeys(name for launcher in LAUNCHERS for name in launcher.variables))
"""All variables that launchers set, as names or as prefixes that end in `*`."""

_NAMES = frozenset(name for name in (*SET, *OWN, *SBATCH) if not name.endswith("*"))
_PREFIXES = tuple(name.removesuffix("*") for name in SET if name.endswith("*"))


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of a launcher, for jobs and ranks of other runs.

    Settings of the user for SLURM's commands stay: SLURM_CONF, SLURM_CLUSTERS, SBATCH_PARTITION, ...

    >>> clean_environment({"HOME": "/h", "RANK": "3", "SLURM_JOB_ID": "7", "SLURM_CONF": "/c", "port": "1"})
    {'HOME': '/h', 'SLURM_CONF': '/c'}
    """
    return {
        name: value
        for name, value in environ.items()
        if name in KEPT or not (name in _NAMES or name.startswith(_PREFIXES))
    }
