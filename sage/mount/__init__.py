"""Where a reducer meets a model: three mounts, one code path."""

from sage.mount.whole import WholeModel as WholeModel
