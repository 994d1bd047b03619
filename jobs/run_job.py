"""A cell as submitit runs it: under SLURM one task for each rank, elsewhere one that starts all ranks."""

import os
import sys
from pathlib import Path
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import Checkpointable
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from sage.config import Config
from sage.exit_status import FAILED, HOPELESS, INTERRUPTED, stop_before_it_begins, tell_the_job
from sage.output import streams
from sage.output.text import clean_text
from sage.storage import RESULT, read_json

STOP = "stop"
"""How the name ends of a file in submitit's folder which says that a local job is not to start again."""


class Cell(Checkpointable):
    """Trains one run; how it leaves says to whoever started it whether it is to start again."""

    error = ""
    """Why the run could not begin."""

    def __init__(self, config: Config, *, max_requeues: int) -> None:
        self.config = config.to_dict()
        self.max_requeues = max_requeues
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    def __call__(self) -> dict[str, Any]:
        """Run it. Returns the result; of an unfinished one, in this very process, the status.

        Raises:
            SystemExit: in a process of its own, with the exit status of a run that has not finished.
        """
        streams.protect()
        job = JobEnvironment()
        if job.cluster == "local":
            self._see_gpus()
        if job.cluster != "debug":
            stop_before_it_begins()
        status = self._train(tries=1 + self.max_requeues if job.cluster == "local" else 1)
        if status == 0:
            # The other ranks' nodes may not see it yet.
            return _result(Config.from_dict(self.config).folder) if job.global_rank == 0 else {}
        if job.cluster == "debug":
            return {"status": status}  # submitit would start a debugger at an exception
        if (
            job.cluster == "local"
            and status == INTERRUPTED
            and not (job.paths.folder / f"{job.job_id}_{STOP}").exists()
        ):
            status = LOCAL_REQUEUE_RETURN_CODE
        # Under SLURM the batch script has the job requeued; submitit would do so after time-outs alone.
        sys.exit(status)

    def _train(self, tries: int) -> int:
        # Before torch is imported: a dead peer is reported in our words, not by the store's stack traces.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from sage.train.run import main

        status = FAILED
        try:
            while status == FAILED and tries:
                status = main(Config.from_dict(self.config))
                tries -= 1
        except ValueError as error:
            status = HOPELESS
            self.error = clean_text(str(error))
            tell_the_job(status, self.error)
            print(f"sage: {self.error}", file=sys.stderr, flush=True)
        return status

    def _see_gpus(self) -> None:
        """Undo that submitit's local executor hides all GPUs that it has not been asked for."""
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if self.visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible


def _result(folder: Path) -> dict[str, Any]:
    return read_json(folder / "result.json", RESULT)
