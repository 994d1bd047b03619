"""Mounts attach a reducer to a model: whole model, DDP hook or FSDP hook, with one code path."""

from sage.mount.whole_model import WholeModel as WholeModel
