"""Records the metrics of a run as JSON lines (authoritative), and for TensorBoard and trackers (derived).

A run folder has one writer, rank 0. `metrics.jsonl` holds one JSON object per line, and each line is written
in one piece. After a crash only the last line can be incomplete: readers skip it, and the next writer removes
it. JSON has no NaN: a number that is not finite is written as null, here and in all other files, so that any
strict parser can read them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage import storage
from sage.records import tracker_process
from sage.records.tensorboard import TensorBoard
from sage.records.tracker_process import TrackerProcess

if TYPE_CHECKING:  # Code that only reads records must not import torch.
    from torch import Tensor

    from sage.config import Config

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
    "vnmse": "vnmse",
    "wire_sent": "wire/sent",
    "wire_received": "wire/received",
    "wire_sent_in_node": "wire/sent_in_node",
    "wire_received_in_node": "wire/received_in_node",
    "seconds": "seconds/step",
    "encode_seconds": "seconds/encode",
    "decode_seconds": "seconds/decode",
    "exposed_seconds": "seconds/exposed",
    "loader_seconds": "seconds/loader",
}
"""Tags of the fields of a step in TensorBoard and trackers; fields of `bytes` and `phases` keep theirs."""


class Recorder:
    """Writes the records of one run; only on rank 0, as TensorBoard files with two writers lose data.

    Args:
        folder: The run folder.
        trackers: What else gets the figures.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     record = recorder(Path(folder), rank=0)
    ...     record.step(step=0, epoch=0, loss=2.3, lr=0.1)
    ...     record.close()
    ...     read_metrics(Path(folder))
    [{'kind': 'step', 'step': 0, 'epoch': 0, 'loss': 2.3, 'lr': 0.1}]
    """

    _evaluated = -1
    """The step of the last recorded evaluation when this run was resumed."""

    def __init__(self, folder: Path, trackers: Sequence[TrackerProcess] = ()) -> None:
        self.folder = folder
        self._trackers = trackers
        self.path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = storage.Lines(self.path, cut=True)
        self._board = TensorBoard(folder)
        self._drawn: tuple[TensorBoard | TrackerProcess, ...] = (self._board, *trackers)

    def rewind(self, step: int) -> None:
        """Remove the records after the checkpoint from which training resumes at `step`.

        No step appears twice, and no evaluation between two steps, whether the checkpoint was written before
        or after the evaluation. Events are kept: they are the history of the run and are not repeated.
        """
        self._lines.close()
        read = storage.read_json_lines(self.path, storage.METRICS)
        kept = [(line, record) for line, record in read if not _undone(record, step)]
        storage.write_bytes(self.path, b"".join(line for line, _ in kept))
        self._lines = storage.Lines(self.path, cut=True)
        self._evaluated = max((record["step"] for _, record in kept if record["kind"] == "epoch"), default=-1)
        self._board.rewind(step)

    def step(self, *, step: int, epoch: int, **fields: Any) -> None:
        """Record one optimiser step; TensorBoard and the trackers get its numeric fields."""
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
        """Record an evaluation after `step` steps, unless it has already been recorded."""
        if step <= self._evaluated:
            return
        measured = {"train_loss": train_loss, "metrics": metrics, "seconds": seconds}
        self._write({"kind": "epoch", "epoch": epoch, "step": step, **measured, **fields})
        self._sync()
        scalars = {f"eval/{name}": value for name, value in metrics.items()}
        average = fields.get("average_metrics") or {}
        scalars |= {f"eval_average/{name}": value for name, value in average.items()}
        # Written at step - 1: when a run resumes at `step`, TensorBoard purges the values from `step` on.
        self._draw(scalars, max(step - 1, 0))

    def event(self, event: str, *, step: int, **fields: Any) -> None:
        """Record an event such as `resumed` or `stopped`, with the time of day."""
        self._write({"kind": "event", "event": event, "step": step, "time": now(), **fields})

    def histogram(self, name: str, tensor: "Tensor", step: int) -> None:
        """Write a histogram of the finite elements of the tensor, for TensorBoard and the trackers only."""
        finite = tensor.detach().float()
        finite = finite[finite.isfinite()]
        if finite.numel():
            for each in self._drawn:
                each.histogram(name, finite, step)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Add the configuration and the final metrics to TensorBoard's hyperparameters."""
        self._board.hparams(config, {f"final/{name}": value for name, value in metrics.items()})

    def finish(self, result: Mapping[str, Any]) -> None:
        """Close the files, and write `result.json`; its presence marks the run as finished.

        The trackers get the result, and time to send it.
        """
        self._close_files()
        storage.write_json(self.folder / "result.json", result, storage.RESULT)
        for tracker in self._trackers:
            tracker.result(result)
        tracker_process.end(self._trackers, tracker_process.FINISH_SECONDS)

    def close(self) -> None:
        """Sync all files to disk and close them, and let the trackers close; further calls do nothing."""
        try:
            self._close_files()
        finally:
            tracker_process.end(self._trackers, tracker_process.STOP_SECONDS)

    def _close_files(self) -> None:
        if not self._lines.closed:
            try:
                self._sync()
            finally:
                self._lines.close()
        self._board.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._lines.append((storage.json_text(record) + "\n").encode())

    def _sync(self) -> None:
        self._lines.sync()

    def _draw(self, scalars: Mapping[str, float | None], step: int) -> None:
        numbers = {tag: value for tag, value in scalars.items() if value is not None}
        for each in self._drawn:
            each.scalars(numbers, step)


class NullRecorder(Recorder):
    """The recorder of all ranks except 0; it writes nothing."""

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


def recorder(folder: Path, rank: int, config: "Config | None" = None) -> Recorder:
    """Return the recorder of this rank: `Recorder` on rank 0, `NullRecorder` on the others.

    Args:
        folder: The run folder.
        rank: The rank.
        config: The run, whose trackers get its figures; None: no trackers.
    """
    if rank:
        return NullRecorder()
    return Recorder(folder, tracker_process.trackers_of(config) if config else ())


def read_metrics(folder: Path) -> list[Record]:
    """Read the records of a run folder, in order, without an incomplete last line.

    Raises:
        FileNotFoundError: There are no records.
        sage.storage.Unreadable: (a ValueError) Any other line is damaged.
    """
    return [record for _, record in storage.read_json_lines(folder / "metrics.jsonl", storage.METRICS)]


def _undone(record: Record, step: int) -> bool:
    """Whether a run resumed at `step` repeats this record; an evaluation is recorded at the next step."""
    first: int | None = {"step": step, "epoch": step + 1}.get(record["kind"])
    return first is not None and first <= record["step"]


def now() -> str:
    """Return the current time in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
