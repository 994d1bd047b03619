"""A reducer's state by parameter, so that it can be restored into buckets other than those it was saved from.

State per element (`residual_N`, any `…_N`), per group (`…_G`) and per block of the memory `loco` belongs to
its parameter. Other state, such as a threshold or a step count, belongs to the bucket: each of its parameters
stores it, and a bucket is restored from its first parameter's.
"""
# N = elements of the flat vector, G = groups of the layout

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from sage.mount.flat import Flat
from sage.reduction.layout import Layout, Span
from sage.reduction.loco import num_blocks

State = dict[str, dict[str, Any]]
"""By parameter name, then by the names of `ErrorFeedback.state_dict()`."""


def by_parameter(flat: Flat) -> State:
    """State of one flat gradient's reducer and error feedback."""
    layout, saved = flat.own.compressed, flat.feedback.state_dict()
    blocks = _blocks(layout)
    return {
        span.name: {key: _part(key, value, layout, span, group, own) for key, value in saved.items()}
        for span, group, own in zip(layout.spans, layout.group_of_span(), blocks, strict=True)
    }


def restore(flat: Flat, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what `by_parameter` returned, from this flat gradient or from others with the same parameters.

    Raises:
        ValueError: if it is the state of another reducer or of other options.
    """
    layout, state = flat.own.compressed, flat.feedback.state_dict()
    restored: dict[str, Any] = {}
    for span in layout.spans:
        if states[span.name].keys() != state.keys():
            raise ValueError(_of_another(states[span.name], state))
    for key, value in state.items():
        parts = [states[span.name][key] for span in layout.spans]
        if not parts:
            restored[key] = value  # all tensors are small and are sent dense
        elif _is_per_element(key, value, layout):
            restored[key] = torch.cat([part.reshape(-1) for part in parts])
        elif _is_per_block(key, value, layout):
            restored[key] = torch.cat(parts)
        elif _is_per_group(key, value, layout):
            of_group = dict(zip(layout.group_of_span(), parts, strict=True))
            restored[key] = torch.stack([of_group[group] for group in range(len(layout.groups))])
        else:
            restored[key] = parts[0]
    try:
        flat.feedback.load_state_dict(restored)
    except RuntimeError as error:
        raise ValueError(f"{_of_another(restored, state)} ({error})") from error


def _part(key: str, value: Any, layout: Layout, span: Span, group: int, blocks: slice) -> Any:
    if _is_per_element(key, value, layout):
        return value[span.start : span.stop].view(span.shape)
    if _is_per_block(key, value, layout):
        return value[blocks]
    return value[group] if _is_per_group(key, value, layout) else value


def _is_per_element(key: str, value: Any, layout: Layout) -> bool:
    return isinstance(value, Tensor) and key.endswith("_N") and value.shape == (layout.numel,)


def _is_per_block(key: str, value: Any, layout: Layout) -> bool:
    num = num_blocks([span.numel for span in layout.spans])
    return isinstance(value, Tensor) and key == "loco.scale_P" and value.shape == (num,)


def _blocks(layout: Layout) -> list[slice]:
    """The blocks of each parameter, in the memory `loco`."""
    stops = [0, *accumulate(num_blocks([span.numel]) for span in layout.spans)]
    return [slice(start, stop) for start, stop in pairwise(stops)]


def _is_per_group(key: str, value: Any, layout: Layout) -> bool:
    return isinstance(value, Tensor) and key.endswith("_G") and value.shape == (len(layout.groups),)


def _of_another(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    return (
        f"a parameter's state is {', '.join(saved) or 'nothing'}, "
        f"the reducer's {', '.join(expected) or 'nothing'}: "
        "mount the reducer that it was saved from, with the same options and memory"
    )
