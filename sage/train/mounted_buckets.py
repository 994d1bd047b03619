"""What the mounts have in common that reduce several parts of the gradient during backward."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch

from sage.train.bucket import Bucket
from sage.train.levels import with_part, without_part
from sage.train.mounted import Mounted

B = TypeVar("B", bound=Bucket)


class MountedBuckets(Mounted, Generic[B]):
    """A mount whose buckets are reduced before the ranks know whether the step is skipped."""

    _buckets: list[B]

    def _is_skipped(self) -> bool:
        """Vote, if steps may be skipped; after a vote to skip all state is as before the step.

        The ranks skip a step if the gradient of any rank is not finite, in any bucket.
        """
        if not self.may_skip:
            return False
        bad = torch.tensor(any(not bucket.is_finite for bucket in self._buckets), device=self.device)
        if not self._anywhere(bad):
            return False
        for bucket in self._buckets:
            bucket.put_back()
        return True

    def state_dict(self) -> dict[str, dict[str, Any]]:
        feedback: dict[str, Any] = {}
        before: dict[str, Any] = {}
        for bucket in self._buckets:
            feedback |= bucket.feedback_state()
            before |= bucket.momentum_state()
        return {"feedback": with_part(feedback, self.flats[0]), "before": before}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        feedback = without_part(state["feedback"], self.flats[0])
        for bucket in self._buckets:
            bucket.load_feedback_state(feedback)
            bucket.load_momentum_state(state["before"])
