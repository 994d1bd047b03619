"""What a run leaves behind: metrics as JSON lines (the truth) and TensorBoard, derived from them.

A run folder has one writer, rank 0. Its `metrics.jsonl` holds one JSON object a line, each written whole; a
crash can tear only the last one, which readers leave out and the next writer cuts off. JSON knows no NaN: a
number that is not finite is written as null, here and in every other file, so that any strict parser can read
them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage import storage

if TYPE_CHECKING:  # What only reads records need not wait for torch.
    from torch import Tensor

Record = dict[str, Any]
"""One line of `metrics.jsonl`; its `kind` is `step`, `epoch` or `event`."""

SCALARS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "density_asked": "density/asked",
    "density_had": "density/had",
    "density_union": "density/union",
    "threshold": "threshold",
    "residual_norm": "residual_norm",
    "gradient_norm": "gradient_norm",
    "wire_sent": "wire/sent",
    "wire_received": "wire/received",
    "seconds": "seconds/step",
}
"""A step's fields and their tags in TensorBoard; the fields of `bytes` and `phases` keep their names."""


class Recorder:
    """Writes the records of one run, and only rank 0 has one: two writers of TensorBoard files lose data.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     record = recorder(Path(folder), rank=0)
    ...     record.step(step=0, epoch=0, loss=2.3, lr=0.1)
    ...     record.close()
    ...     read_metrics(Path(folder))
    [{'kind': 'step', 'step': 0, 'epoch': 0, 'loss': 2.3, 'lr': 0.1}]
    """

    _evaluated = -1
    """The step of the last evaluation that stood on record when this run went on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = storage.Lines(self.path, cut=True)
        self._board: Any = None
        self._purge_step: int | None = None

    def rewind(self, step: int) -> None:
        """Forget what was measured after the checkpoint from which training goes on with `step`.

        Nothing then appears twice: not a step, and not the evaluation between two steps, whether the
        checkpoint was taken before it or after it. Events stay: that a run was stopped is its history, and is
        not done over.
        """
        self._lines.close()
        read = storage.read_json_lines(self.path, storage.METRICS)
        kept = [(line, record) for line, record in read if not _undone(record, step)]
        storage.write_bytes(self.path, b"".join(line for line, _ in kept))
        self._lines = storage.Lines(self.path, cut=True)
        self._evaluated = max((record["step"] for _, record in kept if record["kind"] == "epoch"), default=-1)
        self._close_board()
        self._purge_step = step

    def step(self, *, step: int, epoch: int, **fields: Any) -> None:
        """Record one optimiser step; TensorBoard gets every field that has a number in it."""
        self._write({"kind": "step", "step": step, "epoch": epoch, **fields})
        scalars = {tag: fields.get(field) for field, tag in SCALARS.items()}
        for group in ("bytes", "phases"):
            scalars |= {f"{group}/{name}": value for name, value in (fields.get(group) or {}).items()}
        self._draw(scalars, step)

    def epoch(
        self,
        *,
        epoch: float,
        step: int,
        train_loss: float,
        metrics: Mapping[str, float],
        seconds: float,
        **fields: Any,
    ) -> None:
        """Record an evaluation, made after `step` steps; one that is on record already is left out."""
        if step <= self._evaluated:
            return
        measured = {"train_loss": train_loss, "metrics": metrics, "seconds": seconds}
        self._write({"kind": "epoch", "epoch": epoch, "step": step, **measured, **fields})
        self._sync()
        scalars = {f"eval/{name}": value for name, value in metrics.items()}
        average = fields.get("average_metrics") or {}
        scalars |= {f"eval_average/{name}": value for name, value in average.items()}
        # Drawn at the last step it saw: when a run goes on with `step`, TensorBoard drops what stands there.
        self._draw(scalars, max(step - 1, 0))

    def event(self, event: str, *, step: int, **fields: Any) -> None:
        """Record something that happened, such as `resumed` or `stopped`, with the time of day."""
        self._write({"kind": "event", "event": event, "step": step, "time": now(), **fields})

    def histogram(self, name: str, tensor: "Tensor", step: int) -> None:
        """Draw a histogram of the tensor's finite elements, in TensorBoard alone."""
        finite = tensor.detach().float()
        finite = finite[finite.isfinite()]
        if finite.numel():
            with self._drawing():
                self._tensorboard().add_histogram(name, finite, step)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """List the run among TensorBoard's hyperparameters, with what it came to."""
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would open a second writer on this folder.
        final = {f"final/{name}": value for name, value in metrics.items()}
        with self._drawing():
            for summary in hparams(dict(_flat(config)), final):
                self._tensorboard().file_writer.add_summary(summary)
        self._draw(final, 0)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the run's result, whose presence says that the run is finished, and close."""
        self.close()
        storage.write_json(self.folder / "result.json", result, storage.RESULT)

    def close(self) -> None:
        """Bring everything to disk; a second call does nothing."""
        if not self._lines.closed:
            try:
                self._sync()
            finally:
                self._lines.close()
        self._close_board()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._lines.append((storage.json_text(record) + "\n").encode())

    def _sync(self) -> None:
        self._lines.sync()

    def _tensorboard(self) -> Any:
        if self._board is None:
            # Here because the import takes as long as a small run, and the other ranks never need it.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                self.folder / "tensorboard", purge_step=self._purge_step, max_queue=1000
            )
        return self._board

    def _draw(self, scalars: Mapping[str, float | None], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        # As one event: an add_scalar for each would slow down the very steps that are being measured.
        numbers = {tag: value for tag, value in scalars.items() if value is not None}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        with self._drawing():
            self._tensorboard().file_writer.add_summary(Summary(value=values), step)

    def _close_board(self) -> None:
        if self._board is not None:
            board, self._board = self._board, None
            with self._drawing():
                board.close()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Name the folder where TensorBoard cannot write: its own errors do not."""
        try:
            yield
        except OSError as error:
            raise storage.NotWritten(self.folder / "tensorboard", error) from error


class Silent(Recorder):
    """The recorder of every rank but 0: it records nothing and touches no file."""

    def __init__(self) -> None:
        pass

    def rewind(self, step: int) -> None: ...

    def histogram(self, name: str, tensor: "Tensor", step: int) -> None: ...

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None: ...

    def finish(self, result: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...

    def _write(self, record: Mapping[str, Any]) -> None: ...

    def _sync(self) -> None: ...

    def _draw(self, scalars: Mapping[str, float | None], step: int) -> None: ...


def recorder(folder: Path, rank: int) -> Recorder:
    """The recorder of this rank: one that writes for rank 0, a silent one for the others."""
    return Recorder(folder) if rank == 0 else Silent()


def read_metrics(folder: Path) -> list[Record]:
    """The records of a run folder, in order, less a torn last line.

    Raises:
        FileNotFoundError: where there are none.
        sage.storage.Unreadable: a ValueError in one line, where any other line is damaged.
    """
    return [record for _, record in storage.read_json_lines(folder / "metrics.jsonl", storage.METRICS)]


def _undone(record: Record, step: int) -> bool:
    """Whether a run that goes on with `step` measures this again; an evaluation's step is the next one."""
    first: int | None = {"step": step, "epoch": step + 1}.get(record["kind"])
    return first is not None and first <= record["step"]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Every leaf of the configuration under its dotted name, in the types that TensorBoard takes."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, bool | int | float | str) else str(value)


def now() -> str:
    """The time of day, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
