"""The goals of the kernels and reducers, as data: the measured ratio, its reference and its limit.

`goals.py` compares reducers with their goals, `kernels.py` kernels, and `reduce_step.py` whole steps over
gloo; all three read the goals here. The limits of passes are for AVX-512; with AVX2 they are twice as large.
"""
# W = payloads that are decoded into one mean

from dataclasses import dataclass
from typing import Literal

What = Literal["compress", "decode", "grace", "cast", "products", "memory"]

SIGNS = ("onebit", "efsignsgd", "sign_norm", "signsgd", "signum", "onebit_sgd")
LEVELS = ("int8", "fp8", "terngrad", "natural", "qsgd")
SAMPLED = ("dgc", "sidco", "gaussiank", "redsync", "mstopk")
PARTITIONED = ("exdyna", "micro", "deft", "oktopk")
RANDOM = ("randomk:draw=own", "randomk:draw=shared")
PLAIN = ("topk", "threshold", "sage", "gtopk", "cltk", "adacomp", *RANDOM)
DITHERED = ("dithering:coding=packed", "dithering:partition=natural,coding=packed", "dithering")
CASTS = ("fp16", "bf16")
MICROSCALED = ("mxfp8", "mxfp4", "nvfp4")
TRANSFORMED = ("thc", "hadamard")
LOW_RANK = ("powersgd", "svd", "atomo")
WITHOUT_KERNELS = ("inceptionn", "sketch")
"""Quantisers in plain torch; they are measured, and have no goals but the memory's."""
COMPARED = (*SIGNS, *LEVELS, *DITHERED, *SAMPLED, *PARTITIONED, *PLAIN)
"""Reducers that are compared with an implementation of GRACE's class (grace_class.py)."""
REDUCERS = (
    *COMPARED,
    "fp4",
    "u8bit",
    *MICROSCALED,
    *TRANSFORMED,
    "sparseloco",
    "accordion",
    "variance",
    *CASTS,
    *LOW_RANK,
    "acp",
    "lqsgd",
    *WITHOUT_KERNELS,
)
"""All reducers that are measured."""


@dataclass(frozen=True)
class Goal:
    """A limit of one measured ratio of some reducers."""

    what: What
    """The measured ratio, of times unless stated otherwise.

    `compress`: until the last collective, with a residual if the method keeps one, relative to `add_`.
    `decode`: after it, relative to `add_`. `grace`: GRACE's class relative to SAGE's, both with the residual.
    `cast`: compress relative to torch's own cast. `products`: the reduction relative to its matrix products,
    QRs and SVDs. `memory`: peak temporary bytes relative to the vector's."""
    reducers: tuple[str, ...]
    limit: float
    per_payload: float = 0.0
    """The limit is `limit + per_payload·W`."""

    @property
    def is_pass(self) -> bool:
        """Whether the limit is for a pass over memory; with AVX2 it is twice as large."""
        return self.what in ("compress", "decode")

    @property
    def is_floor(self) -> bool:
        """Whether the limit is a minimum."""
        return self.what == "grace"

    def at(self, world_size: int, factor: float = 1.0) -> float:
        """Return the limit for W payloads on a processor whose passes may take `factor` times as long."""
        return (self.limit + self.per_payload * world_size) * (factor if self.is_pass else 1.0)


GOALS = (
    Goal("compress", SIGNS, 2.5),
    Goal("decode", SIGNS, 1.0, 0.3),
    Goal("compress", (*LEVELS, "fp4", "u8bit", *MICROSCALED), 4.0),
    Goal("decode", (*LEVELS, "fp4", "u8bit", *MICROSCALED), 1.0, 0.5),
    Goal("compress", ("thc",), 8.0),
    Goal("decode", ("thc",), 3.0, 1.0),
    Goal("compress", SAMPLED, 3.0),
    Goal("compress", ("adacomp", "sparseloco"), 5.0),
    Goal("compress", RANDOM, 2.0),
    Goal("compress", PARTITIONED, 3.0),
    Goal("grace", COMPARED, 5.0),
    Goal("cast", CASTS, 1.2),
    Goal("products", LOW_RANK, 1.2),
    Goal("memory", REDUCERS, 2.0),
)

STEPS: dict[str, dict[int, float]] = {
    **dict.fromkeys(CASTS, {2: 1.0, 4: 1.0}),
    **dict.fromkeys(("onebit", "efsignsgd"), {2: 2.0, 4: 2.0}),
    **dict.fromkeys(("int8", "fp8", "qsgd"), {2: 1.2, 4: 1.2}),
    **dict.fromkeys(("sage", "topk"), {2: 4.0, 4: 1.0}),
}
"""Speedup of a whole step over `exact` by world size; `sage` and `topk` at densities of .01 and below."""
STEP_DENSITIES = (0.001, 0.01)
PLAIN_TORCH_STEP = 5.0
"""Speedup of a sparsifier's whole step over itself without native kernels."""

SELECT = 0.85
"""`take_above`, as a share of the speed of `add_`, from n = 1e6."""
TOP = {0.001: 0.8, 0.01: 0.7, 0.1: 0.4}
"""`take_top` by density, as a share of the speed of `add_`, from n = 1e6."""
SELECT_OVER_TORCH = 8.0
SCATTER_OVER_TORCH = 1.5
"""`scatter_mean` of 4 ranks over `zero_` and `index_add_`, from n = 1e6 and d = .01."""
STEERED = 1 / 1.1
"""SAGE's controller over a selection with a fixed threshold."""


def top_over_torch(n: int) -> float:
    """Speedup of `take_top` over plain torch at n elements."""
    return 6.0 if n < 1_000_000 else 15.0 if n < 10_000_000 else 20.0


def goal_of(what: What, reducer: str) -> Goal | None:
    """Return the goal of a reducer; None if it has none.

    >>> goal = goal_of("decode", "onebit")
    >>> goal.at(4), goal.at(4, factor=2)
    (2.2, 4.4)
    >>> goal_of("decode", "topk") is None
    True
    """
    return next((goal for goal in GOALS if goal.what == what and reducer in goal.reducers), None)
