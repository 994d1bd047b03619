"""`sage.advise` in a script of one's own: one verdict on all ranks, and the model as it was."""

from typing import Any

import pytest
import torch
from gloo import processes
from mounted import loss, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.bench.advise.verdict import Verdict

REDUCERS = ("exact", "bf16", "topk", "onebit")


BROKEN = """
from sage.reduction import Reducer


class Broken(Reducer):
    def forward(self, *given):
        raise RuntimeError("no such element")


REDUCER = Broken
"""


def advised(rank: int, broken: str) -> tuple[Verdict, bool, str]:
    model = network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    verdict = sage.advise(
        model,
        lambda copied: loss(copied, rank, 0).backward(),
        reducers=(*REDUCERS, broken),
        densities=(0.1,),
        minutes=0.05,
    )
    is_same = all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    return verdict, is_same and all(p.grad is None for p in model.parameters()), str(verdict)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Verdict, bool, str]]:
    """The verdict on each of two ranks; one of the reducers fails."""
    file = tmp_path_factory.mktemp("reducers") / "broken.py"
    file.write_text(BROKEN)
    return processes(2, lambda wire: advised(wire.rank, str(file)))


def test_a_reducer_that_fails_is_named_with_its_reason(found: list[tuple[Verdict, bool, str]]) -> None:
    for verdict, _, shown in found:
        (told,) = verdict.failed
        assert told.startswith("the reducer broken failed: rank 0: RuntimeError: no such element")
        assert f"Left out: {told}" in shown


def test_all_ranks_have_one_verdict(found: list[tuple[Verdict, bool, str]]) -> None:
    (ours, _, shown), (theirs, _, _) = found
    assert ours == theirs
    assert "Sequential on 2 ranks of 1 node" in shown


def test_the_verdict_names_lines_of_a_script(found: list[tuple[Verdict, bool, str]]) -> None:
    verdict, _, _ = found[0]
    names = {each.name for each in verdict.measured}
    assert {"sage.ddp_hook(model, 'exact')", "sage.ddp_hook(model, 'bf16')"} <= names
    # A dense reference with smaller buckets is measured too where it is predicted to be faster: times decide.
    assert len({name.partition(", with ")[0] for name in names}) == 4
    assert verdict.command in names


def test_the_model_of_the_script_is_unchanged(found: list[tuple[Verdict, bool, str]]) -> None:
    assert all(is_same for _, is_same, _ in found)


def wrong(rank: int) -> dict[str, str]:
    model = network()

    def backward(copied: nn.Module) -> object:
        return loss(copied, rank, 0).backward()

    def twice(copied: nn.Module) -> object:
        return (loss(copied, rank, 0) + loss(copied, rank, 1)).backward()

    calls: dict[str, Any] = {
        "wrapped": lambda: sage.advise(DistributedDataParallel(model), backward),
        "no time": lambda: sage.advise(model, backward, minutes=0),
        "no reference": lambda: sage.advise(model, backward, reducers=["topk"]),
        "nothing to compress": lambda: sage.advise(model, backward, reducers=["exact"]),
        "unknown": lambda: sage.advise(model, backward, reducers=["exact", "topl"]),
        "two passes": lambda: sage.advise(model, twice, reducers=REDUCERS, minutes=0.05),
        "no pass": lambda: sage.advise(model, lambda copied: None, reducers=REDUCERS, minutes=0.05),
    }
    texts = {}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=".") as error:
            call()
        texts[name] = str(error.value)
    return texts


def test_wrong_arguments_are_refused_by_name() -> None:
    for texts in processes(2, lambda wire: wrong(wire.rank)):
        assert texts["wrapped"] == "the model is wrapped in DistributedDataParallel: pass model.module"
        assert texts["no time"] == "minutes is 0; allowed is more than 0"
        assert texts["no reference"] == "reducers has no reference: add exact or bf16"
        assert "no method that compresses" in texts["nothing to compress"]
        assert "topl" in texts["unknown"]
        assert "forward 2 times" in texts["two passes"]
        assert "forward 0 times" in texts["no pass"]


def test_it_needs_a_process_group() -> None:
    with pytest.raises(ValueError, match="no process group is initialised"):
        sage.advise(network(), lambda model: None)
