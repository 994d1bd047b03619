"""Tests of a rank's place and rendezvous address as determined by environment variables."""

import socket

import pytest

from sage.comm import variables
from sage.comm.rendezvous import Place, local_places, place

BARE = {"hostip": "10.0.0.1", "port": "29500", "rank": "2", "world_size": "4"}
MEETING = {"hostip": "10.0.0.1", "port": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
STEP = SLURM | {
    "SLURM_JOB_ID": "5151",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "node[7-8]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
}
ONE_TASK = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "6",
    "OMPI_COMM_WORLD_SIZE": "9",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}
TORCHRUN = {
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
    "RANK": "7",
    "WORLD_SIZE": "10",
    "LOCAL_RANK": "3",
}


def place_of(environ: dict[str, str]) -> tuple[str, int, int, int, int]:
    found = place(environ)
    assert found
    return found.hostip, found.port, found.rank, found.world_size, found.local_rank


def without(environ: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environ.items() if key != name}


@pytest.mark.parametrize(
    "environ",
    [{}, STEP | ONE_TASK, {"MASTER_ADDR": "node7"}, {"world_size": "4"}],
)
def test_without_a_rendezvous_address_there_is_no_place(environ: dict[str, str]) -> None:
    assert place(environ) is None


def test_tasks_of_open_mpi_without_a_rendezvous_address_do_not_each_start_a_run() -> None:
    with pytest.raises(ValueError, match="started 9 tasks, .* set hostip .* and port"):
        place(OPEN_MPI)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[7-8,10]", "node7"),
        ("node[08,10],other3", "node08"),
        ("other3,node[7-8]", "other3"),
        ("rack[1-2]n[3-4].lab,x", "rack1n3.lab"),
    ],
)
def test_the_rendezvous_of_a_steps_tasks_is_on_its_first_node(
    monkeypatch: pytest.MonkeyPatch, nodes: str, first: str
) -> None:
    monkeypatch.setattr(variables, "resolve", {first: ["10.0.0.9"]}.__getitem__)
    step = STEP | {"SLURM_STEP_NODELIST": nodes}
    assert place_of(step) == (first, 20000 + 5151 + 303, 5, 8, 1)
    another = place_of(step | {"SLURM_STEP_ID": "4"})
    assert another[1] == 20000 + 5151 + 404, "steps of one job would get in each other's way"


def test_the_rendezvous_of_one_nodes_tasks_is_on_loopback() -> None:
    assert place_of(STEP | {"SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("environ", "expected", "source"),
    [
        (BARE, ("10.0.0.1", 29500, 2, 4, 0), "hostip/port/rank/world_size"),
        (BARE | {"local_rank": "1"}, ("10.0.0.1", 29500, 2, 4, 1), "hostip/port/rank/world_size"),
        (MEETING | SLURM, ("10.0.0.1", 29500, 5, 8, 1), "srun's rank"),
        (MEETING | OPEN_MPI, ("10.0.0.1", 29500, 6, 9, 2), "Open MPI's rank"),
        (MEETING | TORCHRUN, ("10.0.0.1", 29500, 7, 10, 3), "RANK/WORLD_SIZE's rank"),
        (TORCHRUN, ("node7", 29400, 7, 10, 3), "MASTER_ADDR/MASTER_PORT/RANK/WORLD_SIZE"),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}, ("node7", 29400, 7, 10, 3), "torchrun"),
    ],
)
def test_the_variables_of_each_launcher_are_read(
    environ: dict[str, str], expected: tuple[str, int, int, int, int], source: str
) -> None:
    assert place_of(environ) == expected
    found = place(environ)
    assert found
    assert found.source.endswith(source)


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        (BARE | {"world_size": "9"} | SLURM | OPEN_MPI | TORCHRUN, 2),
        (MEETING | SLURM | TORCHRUN, 5),
        (MEETING | SLURM | OPEN_MPI | TORCHRUN, 6),
        (MEETING | OPEN_MPI | TORCHRUN, 6),
        (SLURM | OPEN_MPI | TORCHRUN, 7),
    ],
)
def test_the_first_launcher_with_variables_is_used(environ: dict[str, str], rank: int) -> None:
    assert place_of(environ)[2] == rank


def test_a_launcher_need_not_set_the_local_rank() -> None:
    assert place_of(MEETING | without(SLURM, "SLURM_LOCALID"))[-1] == 0


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        *((BARE, name) for name in ("port", "rank", "world_size", "hostip")),
        *((MEETING | SLURM, name) for name in ("port", "SLURM_NTASKS")),
        *((MEETING | OPEN_MPI, name) for name in ("port", "OMPI_COMM_WORLD_SIZE")),
        *((TORCHRUN, name) for name in ("MASTER_PORT", "WORLD_SIZE")),
    ],
)
def test_a_missing_variable_is_named(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b.* is not"):
        place(without(environ, name))


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        *((BARE, name) for name in ("port", "rank", "world_size")),
        *((MEETING | SLURM, name) for name in SLURM),
        *((MEETING | OPEN_MPI, name) for name in OPEN_MPI),
        *((TORCHRUN, name) for name in ("MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")),
    ],
)
@pytest.mark.parametrize("value", ["two", "", "1.5"])
def test_a_variable_that_is_not_a_number_is_named(environ: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}='{value}': expected a whole number"):
        place(environ | {name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": "4"}, r"rank=4: expected 0 to 3 because world_size is 4"),
        ({"rank": "-1"}, r"rank=-1: expected 0 to 3"),
        ({"world_size": "0"}, r"world_size=0: expected 1 to 1000000"),
        ({"port": "0"}, r"port=0: expected 1 to 65535"),
        ({"port": "65536"}, r"port=65536: expected 1 to 65535"),
        ({"hostip": " "}, r"hostip is empty: expected rank 0's address or name"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(BARE | change)


@pytest.mark.parametrize("hostip", ["::1", "fe80::1%eth0", "2001:db8::5", "node-3.cluster"])
def test_every_form_of_address_is_accepted(hostip: str) -> None:
    assert place_of(BARE | {"hostip": hostip})[0] == hostip


def test_the_rendezvous_of_spawned_ranks_is_a_free_port_of_loopback() -> None:
    places = local_places(3)
    port = places[0].port
    secret = places[0].secret
    assert len(secret) == 32
    assert secret != local_places(1)[0].secret
    assert secret not in repr(places[0]), "it would come into messages"
    assert places == [
        Place(rank=rank, world_size=3, hostip="127.0.0.1", port=port, local_rank=rank, secret=secret)
        for rank in range(3)
    ]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
