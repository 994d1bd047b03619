"""bf16: dense all-reduce in bfloat16, half the bytes with fp32's range; a baseline (PyTorch's DDP hook)."""

import torch

from .fp16 import Fp16


class Bf16(Fp16):
    """As `fp16`, but cast to bfloat16, as PyTorch's bf16_compress_hook does.

    Payload bytes per rank: 2 per element.
    """

    dtype = torch.bfloat16
    precision = 2.0**-6


REDUCER = Bf16
