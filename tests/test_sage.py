"""SAGE with every controller and every exchange: the laws, the bytes by hand, and what is sent."""
# N = elements of the flat vector, W = world size

from typing import Any

import pytest
import torch
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.conform import LAWS
from sage.exchange import EXCHANGES, TRIALS, Auto, capacity
from sage.layout import Layout
from sage.reduce import ErrorFeedback
from sage.reducers.gtopk import GTopK
from sage.reducers.sage import Sage
from sage.trial import Case

VARIANTS: list[dict[str, Any]] = [
    *({"exchange": exchange} for exchange in EXCHANGES),
    *(
        {"controller": controller, "agree": agree}
        for controller in ("sage", "feedback")
        for agree in (False, True)
    ),
    {"agree": True, "exchange": "uneven"},
    {"controller": "sage", "exchange": "chunks"},
    {"controller": "feedback", "exchange": "exclusive"},
    {"exchange": "union", "values": "fp16"},
    *({"density_schedule": schedule} for schedule in ("warmup", "linear", "cosine", "accordion")),
    {"density_schedule": "budget", "budget": 1e6},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_variant_keeps_every_law(options: dict[str, Any], world_size: int) -> None:
    for law in LAWS:
        law(Case(Sage, options, world_size, memory="residual"))
