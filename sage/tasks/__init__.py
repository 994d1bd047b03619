"""Tasks: what a workload learns, and the metrics that say how well. One file per task."""

from .base import Task as Task
from .base import stack as stack
