"""Writes the figures of a run as TensorBoard files; the writer opens with the first figure."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage import storage

from .flat import flat

if TYPE_CHECKING:  # Code that only reads records must not import torch.
    from torch import Tensor


class TensorBoard:
    """The TensorBoard files of one run folder.

    Args:
        folder: The run folder; the files are in its subfolder `tensorboard`.

    Raises:
        sage.storage.NotWritten: (an OSError) TensorBoard cannot write. Any method may raise it; it names the
            folder, which TensorBoard's own errors do not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self._writer: Any = None
        self._purge_step: int | None = None

    def rewind(self, step: int) -> None:
        """Hide the figures from `step` on, because the run resumes there."""
        self.close()
        self._purge_step = step

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of a step by their tags."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        # One event for all scalars: an add_scalar for each would slow down the steps that are measured.
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        with self._writing():
            self._open().file_writer.add_summary(summary, step)

    def histogram(self, name: str, finite_N: "Tensor", step: int) -> None:
        """Write a histogram of these elements."""
        with self._writing():
            self._open().add_histogram(name, finite_N, step)

    def hparams(self, config: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Add the configuration and the final figures, by their tags, to the hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would open a second writer on this folder.
        with self._writing():
            for summary in hparams(flat(config), dict(final)):
                self._open().file_writer.add_summary(summary)
        self.scalars(final, 0)

    def close(self) -> None:
        """Write all files and close them."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._writing():
                writer.close()

    def _open(self) -> Any:
        if self._writer is None:
            # Imported here: the import takes as long as a small run, and the other ranks never need it.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder, purge_step=self._purge_step, max_queue=1000)
        return self._writer

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage.NotWritten(self.folder, error) from error
