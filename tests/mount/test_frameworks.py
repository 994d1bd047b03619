"""Tests that the snippets of docs/how-to/combine-a-mount.md train as a script of one's own does."""
# B = batch

import os
import re
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import Wrapped, network, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import sage
from sage.comm.wire import Wire
from sage.mount.ddp import DdpMount

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "combine-a-mount.md"
STEPS = 4


def snippet(heading: str) -> str:
    """The code below a heading of the page."""
    below = PAGE.read_text("utf-8").partition(f"\n### {heading}\n")[2]
    section = re.split(r"\n##+ ", below)[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return str(code)


def run_snippet(heading: str, **names: Any) -> dict[str, Any]:
    exec(snippet(heading), names := {"sage": sage, **names})
    return names


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of `mounted.loss`."""
    found = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * step + rank)
        x_BCHW = torch.randn(6, 1, 8, 8, generator=generator)
        found.append((x_BCHW, torch.randint(10, (6,), generator=generator)))
    return found


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


Result = tuple[list[Tensor], DdpMount]


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def steps_of_accelerate(accelerator: Any, model: Any, optimizer: Any, rank: int) -> None:
    for x_BCHW, label_B in batches(rank):
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(x_BCHW), label_B))
        optimizer.step()


def with_accelerate(rank: int) -> Result:
    accelerator = import_module("accelerate").Accelerator(cpu=True)
    model = network()
    names = run_snippet("accelerate", accelerator=accelerator, model=model, optimizer=optimizer_of(model))
    assert isinstance(names["model"], DistributedDataParallel)
    steps_of_accelerate(accelerator, names["model"], names["optimizer"], rank)
    return parameters_of(model), names["mount"]


def with_handler(rank: int) -> Result:
    accelerate = import_module("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    names = run_snippet("accelerate, by its handler", accelerator=accelerator, accelerate=accelerate)
    model = network()
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    steps_of_accelerate(accelerator, wrapped, optimizer, rank)
    return parameters_of(model), names["state"].mount


def with_lightning(rank: int) -> Result:
    lightning: Any = import_module("lightning")
    strategies: Any = import_module("lightning.pytorch.strategies")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.network)

    callback = run_snippet("Lightning", lightning=lightning)["Sage"]()
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategies.DDPStrategy(process_group_backend="gloo"),
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(batches(rank), batch_size=None))  # type: ignore[arg-type]
    return parameters_of(module), callback.mount


class WithLoss(nn.Module):
    """The network as Hugging Face's Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.network(x), labels)}


def with_trainer(rank: int) -> Result:
    transformers: Any = import_module("transformers")

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return DataLoader([{"x": x, "labels": labels} for x, labels in batches(rank)], batch_size=None)  # type: ignore[arg-type]

    model = WithLoss()
    optimizer = optimizer_of(model)
    trainer = Trainer(
        model,
        transformers.TrainingArguments(
            output_dir="unused",
            use_cpu=True,
            max_steps=STEPS,
            max_grad_norm=0.0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    names = run_snippet("Hugging Face Trainer", transformers=transformers, trainer=trainer)
    trainer.train()
    (callback,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, names["Sage"])]
    return parameters_of(model), callback.mount


def with_lightnings_own_function(rank: int) -> Result:
    """What DDPStrategy calls with its `ddp_comm_state` and `ddp_comm_hook`, on GPUs only."""
    overrides: Any = import_module("lightning.pytorch.overrides.distributed")
    state, hook = sage.comm_hook(None, "topk", density=0.01)
    wrapped = DistributedDataParallel(network())
    overrides._register_ddp_comm_hook(model=wrapped, ddp_comm_state=state, ddp_comm_hook=hook)
    optimizer = optimizer_of(wrapped)
    for x_BCHW, label_B in batches(rank):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x_BCHW), label_B).backward()
        optimizer.step()
    return parameters_of(wrapped), state.mount


WAYS: dict[str, tuple[Callable[[int], Result], str]] = {
    "accelerate": (with_accelerate, "accelerate"),
    "accelerate, by its handler": (with_handler, "accelerate"),
    "Lightning": (with_lightning, "lightning"),
    "Lightning, by its own function": (with_lightnings_own_function, "lightning"),
    "Hugging Face Trainer": (with_trainer, "transformers"),
}
"""By the heading of the snippet on the page: what trains with it, and the package."""


@pytest.mark.parametrize("heading", [name for name in WAYS if not name.endswith("function")])
def test_a_snippet_has_at_most_five_lines(heading: str) -> None:
    lines = [line for line in snippet(heading).splitlines() if line.strip()]
    assert 1 <= len(lines) <= 5


@cache
def seen() -> list[dict[str, tuple[bool, bool]]]:
    """For each framework, whether parameters and bytes equal those of a script of one's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not SAGE's
        for module in {module for _, module in WAYS.values()}:
            if find_spec(module):
                import_module(module)  # once, before ranks are forked
        if find_spec("transformers"):
            _ = import_module("transformers").Trainer

    def work(wire: Wire) -> dict[str, tuple[bool, bool]]:
        # The variables that torchrun sets.
        os.environ |= {"RANK": str(wire.rank), "LOCAL_RANK": str(wire.rank), "WORLD_SIZE": "2"}
        os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        script = Wrapped(network(), wire.rank, "topk", density=0.01)
        expected = script.train(range(STEPS))
        found = {}
        for name, (train, module) in WAYS.items():
            if find_spec(module):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    parameters, mount = train(wire.rank)
                alike = mount.total.payload_bytes == script.mount.total.payload_bytes
                found[name] = same(expected, parameters), alike
                mount.close()
        return found

    return processes(2, work, timeout=60)


@pytest.mark.parametrize("name", WAYS)
def test_a_framework_trains_as_a_script_of_ones_own(name: str) -> None:
    if not find_spec(WAYS[name][1]):
        pytest.skip(f"{WAYS[name][1]} is not installed")
    for view in seen():
        assert view[name] == (True, True)
