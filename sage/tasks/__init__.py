"""Tasks: the loss and the metrics of a workload, one file per task."""

from .base import Task as Task
from .base import stack as stack
