"""Tests of the table of launchers, and that several tasks never start several runs."""

import re
import shlex
from pathlib import Path

import pytest
from environments import MASTER, MEETING, NAMES, NONSENSE, STEP, VALUES
from environments import of_launcher as environment
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.comm import variables
from sage.comm.launchers import (
    KEPT,
    LAUNCHERS,
    OWN,
    PLAIN,
    SBATCH,
    SLURM,
    TORCHRUN,
    Launcher,
    clean_environment,
)
from sage.comm.rendezvous import Place, place

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "launchers.md"


@pytest.fixture(autouse=True)
def nodes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server and no SLURM is called."""

    def resolve(name: str) -> list[str]:
        return ["10.0.0.9"]

    monkeypatch.setattr(variables, "resolve", resolve)


# One row of the table.

WITH_ROWS = [pytest.param(one, id=one.name) for one in LAUNCHERS]
WITH_SIZES = [pytest.param(one, id=one.name) for one in LAUNCHERS if one.size]


def refusal(environ: dict[str, str]) -> str:
    """The error of the environment, which must be one printable line."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        place(environ)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    return message


@pytest.mark.parametrize("launcher", WITH_SIZES)
def test_each_launcher_sets_the_ranks_if_hostip_is_the_rendezvous(launcher: Launcher) -> None:
    found = place(MEETING | environment(launcher))
    assert found
    assert (found.hostip, found.port, found.rank, found.world_size) == ("10.0.0.1", 29500, 2, 4)
    assert found.local_rank == (1 if launcher.local_rank else 0)
    assert found.source.startswith("hostip/port, and ")


@pytest.mark.parametrize("launcher", WITH_SIZES)
def test_each_launcher_may_omit_the_local_rank(launcher: Launcher) -> None:
    variables = {name: value for name, value in environment(launcher).items() if name != launcher.local_rank}
    apart, together = place(MEETING | variables), place(MEETING | variables | {"hostip": "127.0.0.1"})
    assert apart
    assert together
    assert (apart.local_rank, together.local_rank) == (0, 2)


@pytest.mark.parametrize("launcher", WITH_ROWS)
@pytest.mark.parametrize("meeting", [{}, MASTER], ids=["nowhere", "MASTER_ADDR"])
def test_several_tasks_never_start_several_runs(launcher: Launcher, meeting: dict[str, str]) -> None:
    for rank in range(1, 4):
        outcome = outcome_of(meeting | environment(launcher, rank))
        joined = f"rank {rank} of 4, local rank 1, at node1:29400"
        assert outcome == joined or re.match("refused: .*(set (all|hostip|rank)|pass on)", outcome), outcome


@pytest.mark.parametrize("launcher", WITH_SIZES)
def test_a_single_task_starts_its_ranks_itself(launcher: Launcher) -> None:
    assert place(environment(launcher, rank=0, size=1, local=0)) is None


@pytest.mark.parametrize("launcher", WITH_SIZES)
def test_a_missing_world_size_of_a_launcher_is_named(launcher: Launcher) -> None:
    variables = {name: value for name, value in environment(launcher).items() if name != launcher.size}
    name = "SLURM_NTASKS" if launcher is SLURM else launcher.size
    assert name in refusal(MEETING | variables)


@pytest.mark.parametrize("launcher", WITH_SIZES)
@pytest.mark.parametrize("value", NONSENSE)
def test_an_invalid_variable_is_named_with_what_is_allowed(launcher: Launcher, value: str) -> None:
    for name in filter(None, (launcher.rank, launcher.size, launcher.local_rank)):
        assert re.match(
            rf"{name}=.*: expected .*0 to |{name}=.*: expected .*1 to ",
            refusal(MEETING | environment(launcher) | {name: value}),
        )


@pytest.mark.parametrize("launcher", WITH_SIZES)
def test_a_number_out_of_its_range_is_named_with_the_range(launcher: Launcher) -> None:
    variables = MEETING | environment(launcher)
    for value in ("4", "-1", "99999999999999999999"):
        expected = f"{launcher.rank}={value}: expected 0 to 3 because {launcher.size} is 4"
        assert refusal(variables | {launcher.rank: value}) == expected
    for value in ("0", "-1", "1000001"):
        assert (
            refusal(variables | {launcher.size: value}) == f"{launcher.size}={value}: expected 1 to 1000000"
        )
    if launcher.local_rank:
        assert refusal(variables | {launcher.local_rank: "4"}).startswith(
            f"{launcher.local_rank}=4: expected 0 to 3"
        )


@pytest.mark.parametrize("launcher", WITH_SIZES)
def test_another_world_size_than_the_launchers_is_refused(launcher: Launcher) -> None:
    for meeting in (MEETING, MASTER | STEP):
        if launcher is PLAIN or meeting is MEETING or launcher in (SLURM, TORCHRUN):
            message = refusal(meeting | environment(launcher) | {"world_size": "3"})
            assert message.startswith("world_size=3, but ")
            assert f"({launcher.size}=4): unset world_size" in message


@pytest.mark.parametrize("launcher", [one for one in LAUNCHERS if one.size and one is not PLAIN])
def test_a_smaller_run_in_each_of_several_tasks_is_refused(launcher: Launcher) -> None:
    inner = MEETING | {"rank": "0", "world_size": "3"}
    assert f"({launcher.size}=4)" in refusal(inner | environment(launcher))
    if launcher is not TORCHRUN and launcher.size != "WORLD_SIZE":
        alone = MASTER | {"RANK": "0", "WORLD_SIZE": "1"}
        assert "would form several runs" in refusal(alone | environment(launcher))
        elastic = alone | {"WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1"}
        assert "GROUP_WORLD_SIZE=1" in refusal(elastic | environment(launcher))


@pytest.mark.parametrize("launcher", [one for one in LAUNCHERS if one.attempt])
def test_a_launchers_count_of_restarts_is_the_attempt(launcher: Launcher) -> None:
    variables = MEETING | environment(launcher)
    first, third = place(variables), place(variables | {launcher.attempt: "2"})
    assert first
    assert third
    assert (first.attempt, third.attempt) == (0, 2)
    assert refusal(variables | {launcher.attempt: "-1"}).startswith(f"{launcher.attempt}=-1: expected 0 to ")


@pytest.mark.parametrize("launcher", WITH_ROWS)
def test_child_processes_get_no_variable_of_a_launcher(launcher: Launcher) -> None:
    result = {name.replace("*", "ANYTHING"): "1" for name in launcher.variables}
    kept = {"HOME": "/h", "PATH": "/p", "SLURM_CONF": "/c", "SBATCH_PARTITION": "gpu", "OMP_NUM_THREADS": "2"}
    own = dict.fromkeys((*OWN, *SBATCH), "1")
    assert clean_environment(result | kept | own) == kept
    assert place(clean_environment(MEETING | MASTER | environment(launcher))) is None


# Secrets and addresses.


def test_the_secret_of_a_run_is_read_and_never_shown() -> None:
    variables = MEETING | {"rank": "0", "world_size": "1"}
    found = place(variables | {"SAGE_SECRET": "f00d"})
    assert found
    assert found.secret == "f00d"
    assert "f00d" not in repr(found)
    assert "s e" not in refusal(variables | {"SAGE_SECRET": "s e"})


@pytest.mark.parametrize("name", ["hostip", "MASTER_ADDR"])
@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "node1:29500", "http://node1", "-x", "a;b", "x" * 300, "\x1b[31m", "[::1", ":::1"],
)
def test_an_invalid_address_is_named(name: str, value: str) -> None:
    whole = {
        "hostip": {"port": "1", "rank": "0", "world_size": "1"},
        "MASTER_ADDR": {"MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "1"},
    }
    assert re.match(
        f"{name}(=.*| is empty): expected rank 0's address or name", refusal(whole[name] | {name: value})
    )


def test_brackets_around_an_address_are_removed() -> None:
    found = place({"hostip": "[::1]", "port": "1", "rank": "0", "world_size": "1"})
    assert found
    assert found.hostip == "::1"


@pytest.mark.parametrize("nodes", ["", "[", "-x", "a b", "node[1-2", "node]", "\x1b", "x" * 300])
def test_an_invalid_list_of_nodes_is_named(nodes: str) -> None:
    variables = STEP | environment(SLURM) | {"SLURM_STEP_NODELIST": nodes}
    assert refusal(variables).startswith("SLURM_STEP_NODELIST=")


# The page.


def table() -> str:
    """The launchers in a table of Markdown."""
    head = ["launcher", "rank", "world size", "local rank", "restarts", "rendezvous address is set"]
    rows = [head, ["---"] * len(head)]
    for one in LAUNCHERS:
        asked = f"`{one.how}`" if one not in (SLURM, TORCHRUN, PLAIN) else "by itself"
        cells = [one.rank + (f", with {one.sign}" if one.sign else ""), one.size, one.local_rank, one.attempt]
        rows.append([one.name, *(cell or "–" for cell in cells), asked])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def outcome_of(environ: dict[str, str]) -> str:
    """The outcome of an environment in the words of the page."""
    try:
        found = place(environ)
    except ValueError as error:
        return f"refused: {error}"
    if found is None:
        return "all ranks start here"
    again = f", attempt {found.attempt}" if found.attempt else ""
    return (
        f"rank {found.rank} of {found.world_size}, local rank {found.local_rank}, "
        f"at {found.hostip}:{found.port}{again}"
    )


def test_the_page_has_the_table_of_launchers() -> None:
    assert table() in PAGE.read_text(), table()


CASES = re.findall(r"^\| `([^`]*)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE) if PAGE.exists() else []


@pytest.mark.parametrize(("environ", "outcome"), CASES, ids=[environ for environ, _ in CASES])
def test_the_page_has_the_outcome_of_each_environment(environ: str, outcome: str) -> None:
    step = " ".join(f"{name}={value}" for name, value in STEP.items())
    words = shlex.split(re.sub(r"\bSTEP$", step, environ))
    assert outcome_of(dict(word.split("=", 1) for word in words)) == outcome


def test_the_page_has_a_case_for_each_launcher_and_names_what_children_do_not_get() -> None:
    page = PAGE.read_text()
    for launcher in LAUNCHERS:
        assert any(f"{launcher.rank}=" in environ for environ, _ in CASES), launcher.name
    for name in {*(name for one in LAUNCHERS for name in one.sets), *OWN, *SBATCH, *KEPT}:
        assert f"`{name}`" in page, name


# Any environment.


@settings(max_examples=examples(500), deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12), st.booleans())
def test_any_environment_gives_a_place_or_none_or_a_one_line_error(
    environ: dict[str, str], whole: bool
) -> None:
    if whole:
        environ = STEP | MASTER | environment(SLURM) | environ
    outcome = outcome_of(environ)
    assert outcome.isprintable(), repr(outcome)
    assert len(outcome) < 800
    if outcome.startswith("rank "):
        found = place(environ)
        assert isinstance(found, Place)
        assert 0 <= found.rank < found.world_size <= 1_000_000
        assert 0 <= found.local_rank < found.world_size
        assert 0 < found.port < 65536
        assert found.attempt >= 0
        assert re.fullmatch(r"[\w.:%-]+", found.hostip)
    assert place(clean_environment(environ)) is None
