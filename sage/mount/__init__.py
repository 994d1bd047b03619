"""Where a reducer meets a model: three mounts, one code path."""

from sage.mount.whole_model import WholeModel as WholeModel
