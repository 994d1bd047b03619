"""Generates environment variables as launchers, shells and user errors set them, for property tests."""

from hypothesis import strategies as st

from sage.comm.launchers import LAUNCHERS, OWN, Launcher

MEETING = {"hostip": "10.0.0.1", "port": "29500"}
MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "29400"}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
}
NONSENSE = [" 3 ", "1e3", "٣", "", "3.0", "0x3", "three", "+3", "3\n4", "\x1b[31m3", "1" * 5000]

NAMES = sorted(
    {name for one in LAUNCHERS for name in one.variables if not name.endswith("*")}
    | {*OWN, *STEP, *MASTER, "SLURM_NTASKS", "SLURM_PTY_PORT", "ENVIRONMENT"}
)
VALUES = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "4", "8", "29500", "10.0.0.1", "127.0.0.1", "node1", "node[1-2]", "BATCH"]
    ),
    st.sampled_from(NONSENSE + ["-1", "65536", "\udcff", "a\x00b", "[::1]", "%", "ü" * 70, "²", "९"]),
    st.text(max_size=20),
)


def of_launcher(launcher: Launcher, rank: int = 2, size: int = 4, local: int = 1) -> dict[str, str]:
    """Return the variables that the launcher sets for one of its tasks."""
    values = {launcher.rank: rank, launcher.size: size, launcher.local_rank: local, launcher.sign: "none"}
    return {name: str(value) for name, value in values.items() if name}


@st.composite
def mixed(draw: st.DrawFn) -> dict[str, str]:
    """Draw variables of up to two launchers, of rendezvous addresses and leftovers, some of them invalid."""
    environ: dict[str, str] = {}
    for launcher in draw(st.lists(st.sampled_from(LAUNCHERS), max_size=2)):
        size = draw(st.sampled_from([1, 1, 2, 4]))
        rank = draw(st.integers(0, size - 1))
        environ |= of_launcher(launcher, rank, size, draw(st.integers(0, rank)))
    for part in draw(st.lists(st.sampled_from([MEETING, MASTER, STEP]), max_size=2)):
        environ |= part
    here = {"hostip": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
    if draw(st.booleans()):
        environ |= {name: value for name, value in here.items() if name in environ}
    environ |= draw(
        st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=draw(st.sampled_from([0, 1, 4])))
    )
    for name in draw(st.lists(st.sampled_from(sorted(environ) or ["port"]), max_size=1)):
        environ.pop(name, None)
    return environ
