"""Presets of local updates: the published settings that `local = "NAME"` fills in.

A preset's settings take effect just before those that are given in the same place: flags override the preset
of `--local`, and a TOML file's own keys override the preset that it names. A preset sets all keys of local
updates (`KEYS`), and no learning rate of the inner optimiser, apart from `muloco`. The reducer of a preset
gives way to one that is given in the same place, as `--reducer` on the command line.

| preset          | H   | outer optimiser          | else                                                   |
|-----------------|-----|--------------------------|--------------------------------------------------------|
| `localsgd`      | 8   | none: the mean           |                                                        |
| `post-localsgd` | 4   | none: the mean           | data-parallel until step 100                           |
| `slowmo`        | 48  | sgd, γ = 1, β = 0.5      | Δ is divided by the inner learning rate                |
| `diloco`        | 500 | nesterov, γ = .7, β = .9 |                                                        |
| `streaming-diloco` | 30 | nesterov, γ = .4, β = .9 | reducer `fp4`, P = 4, τ = 5, α = .5                |
| `des-loc`       | 32  | none: the mean           | Adam's moments are averaged every 96 and 192 steps     |
| `sparseloco`    | 30  | sgd, γ = 1               | reducer `sparseloco`, decay .95 of the residual        |
| `muloco`        | 30  | nesterov, γ = .8, β = .9 | Muon, decay .9 of the residual                         |

Sources:

- `localsgd`: Stich 2018, https://arxiv.org/abs/1805.09767. The number of 8 steps is SAGE's choice.
- `post-localsgd`: Lin et al. 2018, https://arxiv.org/abs/1808.07217. The numbers are those of the example in
  the documentation of `torch.distributed.algorithms.model_averaging.averagers` (torch 2.14.1).
- `slowmo`: Wang et al. 2019, https://arxiv.org/abs/1910.00643, algorithm 1. The numbers are the defaults of
  `SlowMomentumOptimizer` in torchdistx (`slowmo_freq`, `slowmo_lr`, `slowmo_factor`).
- `diloco`: Douillard et al. 2023, https://arxiv.org/abs/2311.08105. The numbers are those of OpenDiLoCo
  (`open_diloco/train_diloco_torch.py`, September 2024). The inner optimiser of both is AdamW; here it is that
  of the workload.
- `streaming-diloco`: Douillard et al. 2025, https://arxiv.org/abs/2501.18512, as a secondary source states
  it: H is 30 or 100, γ = .4, τ at most 5, α = .5, 4-bit floats. β is DiLoCo's. The paper's fragments have
  three blocks each; the number of 4 is SAGE's choice.
- `des-loc`: Iacob et al. 2025, https://arxiv.org/abs/2505.22549. The periods are K, 3K and 6K; K = 32 is
  SAGE's choice. This follows the abstract; the paper's other settings are unverified.
- `sparseloco`: Sarfi et al. 2025, https://arxiv.org/abs/2508.15706. The numbers are those of templar
  (`hparams/hparams.json`), where γ later becomes 0.65. The inner optimiser is AdamW; here it is that of the
  workload. The mean is that of the paper; templar's is `--mean senders`.
- `muloco`: Thérien et al. 2025, https://arxiv.org/abs/2505.23725. The numbers are those of the configuration
  `torchtitan/config/diloco/2x_4gpu_muloco_quantized_outer.py` of facebookresearch/MuLoCo@15ee278. That file
  has one learning rate for Muon and AdamW, and scales Muon's by the spectral norm. The residual and its decay
  need a reducer with error feedback.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ..validate import known

Preset = Literal[
    "localsgd", "post-localsgd", "slowmo", "diloco", "streaming-diloco", "des-loc", "sparseloco", "muloco"
]

KEYS: Mapping[str, Any] = {
    "local": None,
    "local_steps": None,
    "local_from": 0,
    "outer_optimizer": None,
    "outer_lr": None,
    "outer_momentum": None,
    "outer_by_lr": False,
    "first_moment_steps": None,
    "second_moment_steps": None,
    "fragments": 1,
    "fragment_order": "strided",
    "fragment_sync_delay": 0,
    "fragment_update_alpha": 0.0,
}
"""The keys of local updates, each with the value that a run without them has."""

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "localsgd": {"local_steps": 8},
    "post-localsgd": {"local_steps": 4, "local_from": 100},
    "slowmo": {
        "local_steps": 48,
        "outer_optimizer": "sgd",
        "outer_lr": 1.0,
        "outer_momentum": 0.5,
        "outer_by_lr": True,
    },
    "diloco": {
        "local_steps": 500,
        "outer_optimizer": "nesterov",
        "outer_lr": 0.7,
        "outer_momentum": 0.9,
    },
    "streaming-diloco": {
        "reducer": "fp4",
        "local_steps": 30,
        "outer_optimizer": "nesterov",
        "outer_lr": 0.4,
        "outer_momentum": 0.9,
        "fragments": 4,
        "fragment_sync_delay": 5,
        "fragment_update_alpha": 0.5,
    },
    "des-loc": {"local_steps": 32, "first_moment_steps": 96, "second_moment_steps": 192},
    "sparseloco": {
        "reducer": "sparseloco",
        "local_steps": 30,
        "outer_optimizer": "sgd",
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
        "memory_beta": 0.95,
    },
    "muloco": {
        "local_steps": 30,
        "outer_optimizer": "nesterov",
        "outer_lr": 0.8,
        "outer_momentum": 0.9,
        "memory_beta": 0.9,
        "optimizer": "muon",
        "lr": 0.02236068,
        "adjust_lr_fn": "spectral_unclamped",
        "momentum": 0.9,
        "momentum_kind": "heavy-ball",
        "beta1": 0.9,
        "beta2": 0.99,
    },
}
"""What each preset sets, apart from keys of local updates that stay at their default."""


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings given in one place together with those of the preset that they name.

    `local` with the value None resets all keys of local updates.

    Raises:
        ValueError: There is no such preset.

    >>> with_preset({"local": "diloco", "local_steps": 30})["local_steps"]
    30
    >>> with_preset({"lr": 0.1})
    {'lr': 0.1}
    """
    if "local" not in given:
        return dict(given)
    name = given["local"]
    if name is None:
        return {**KEYS, **given}
    known("preset of local updates", str(name), PRESETS)
    return {**KEYS, **PRESETS[name], **given}
