"""A run as a submitit job: under SLURM one task per rank; elsewhere one process that starts all ranks."""

import os
import sys
from pathlib import Path
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import Checkpointable
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from sage.config import Config
from sage.exit_status import FAILED, FATAL, INTERRUPTED, exit_on_early_signals, notify_job
from sage.jobs.local_process import STOP
from sage.output import streams
from sage.output.text import clean_text
from sage.storage import RESULT, read_json


class RunJob(Checkpointable):
    """Trains one run. Its exit status tells the executor whether to start it again."""

    error = ""
    """Why the run could not start."""

    def __init__(self, config: Config, *, max_requeues: int) -> None:
        self.config = config.to_dict()
        self.max_requeues = max_requeues
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    def __call__(self) -> dict[str, Any]:
        """Train. Returns the result, or under the debug executor the exit status of an unfinished run.

        Raises:
            SystemExit: the run has not finished and has its own process; has the run's exit status.
        """
        streams.protect()
        job = JobEnvironment()
        if job.cluster == "local":
            self._restore_gpus()
        if job.cluster != "debug":
            exit_on_early_signals()
        status = self._train(tries=1 + self.max_requeues if job.cluster == "local" else 1)
        if status == 0:
            # On the other ranks' nodes the file may not be visible yet.
            return _result(Config.from_dict(self.config).folder) if job.global_rank == 0 else {}
        if job.cluster == "debug":
            return {"status": status}  # after an exception submitit would start a debugger
        if (
            job.cluster == "local"
            and status == INTERRUPTED
            and not (job.paths.folder / f"{job.job_id}_{STOP}").exists()
        ):
            status = LOCAL_REQUEUE_RETURN_CODE
        # Under SLURM the batch script requeues the job; submitit would requeue it after time-outs only.
        sys.exit(status)

    def _train(self, tries: int) -> int:
        # Set before torch is imported: SAGE reports a dead peer itself, without the store's stack traces.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        from sage.train.run import main

        status = FAILED
        try:
            while status == FAILED and tries:
                status = main(Config.from_dict(self.config))
                tries -= 1
        except ValueError as error:
            status = FATAL
            self.error = clean_text(str(error))
            notify_job(status, self.error)
            print(f"sage: {self.error}", file=sys.stderr, flush=True)
        return status

    def _restore_gpus(self) -> None:
        """Restore CUDA_VISIBLE_DEVICES: submitit's local executor hides all GPUs that were not requested."""
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if self.visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible


def _result(folder: Path) -> dict[str, Any]:
    return read_json(folder / "result.json", RESULT)
