"""Compressors in GRACE's form: plain torch, one layer at a time, codes that are not packed.

Each function is written from the method's formula, in the form of GRACE's compressors (Xu et al., ICDCS
2021): add the residual to a layer, compress it, decompress the code, and store the difference. A user of such
a library runs implementations of this kind; `goals.py` compares SAGE's with them.
"""
# N = elements of a layer, K = elements selected, B = blocks

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

DENSITY = 0.01
Roundtrip = Callable[[Tensor], Tensor]
"""Compresses one layer and decompresses its code."""


def signs(x_N: Tensor) -> Tensor:
    """sign(x)·mean|x|."""
    code_N, scale = (x_N >= 0).to(torch.uint8), x_N.abs().mean()
    return (code_N.float() * 2 - 1) * scale


def unscaled_signs(x_N: Tensor) -> Tensor:
    """sign(x)."""
    return (x_N >= 0).to(torch.uint8).float() * 2 - 1


def two_means(x_N: Tensor) -> Tensor:
    """Replace each element by the mean of the negative elements or of the others, by its sign."""
    below_N = x_N < 0
    num_below = below_N.sum().clamp(min=1)
    below = (x_N * below_N).sum() / num_below
    other = (x_N * ~below_N).sum() / (x_N.numel() - num_below).clamp(min=1)
    code_N = below_N.to(torch.uint8).float()
    return below * code_N + other * (1 - code_N)


def linear_levels(x_N: Tensor, levels: int) -> Tensor:
    """Return ‖x‖·sign(x)·level/s, the level drawn from the two around s·|x|/‖x‖ (QSGD)."""
    norm = x_N.norm()
    ratio_N = levels * x_N.abs() / norm
    floor_N = ratio_N.floor()
    level_N = floor_N + (torch.rand_like(x_N) < ratio_N - floor_N).float()
    code_N = (level_N * x_N.sign()).to(torch.int8)
    return code_N.float() * norm / levels


def ternary(x_N: Tensor) -> Tensor:
    """Draw s·sign(x) with probability |x|/s, else 0, after clipping to 2.5 standard deviations (TernGrad)."""
    limit = 2.5 * x_N.std(correction=0)
    clipped_N = x_N.clamp(-limit, limit)
    scale = clipped_N.abs().max()
    kept_N = torch.rand_like(x_N) < clipped_N.abs() / scale
    return (clipped_N.sign() * kept_N).to(torch.int8).float() * scale


def powers(x_N: Tensor) -> Tensor:
    """Round |x| to a power of two, drawn so that the expectation is x."""
    mantissa_N, exponent_N = torch.frexp(x_N.abs())
    up_N = torch.rand_like(x_N) < 2 * mantissa_N - 1
    code_N = exponent_N - 1 + up_N.int()
    return torch.ldexp(x_N.sign(), code_N)


def blocks(x_N: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    """Round to multiples of each block's largest magnitude, in 8 bits."""
    x_B256 = torch.nn.functional.pad(x_N, (0, -x_N.numel() % 256)).view(-1, 256)
    scale_B1 = x_B256.abs().amax(1, keepdim=True).clamp(min=1e-30)
    ratio_B256 = x_B256 / scale_B1 * largest
    code_B256 = (ratio_B256.round() if dtype == torch.int8 else ratio_B256).to(dtype)
    return (code_B256.float() / largest * scale_B1).view(-1)[: x_N.numel()]


def sparse(x_N: Tensor, at_K: Tensor) -> Tensor:
    """Return the values at these indices, and 0 elsewhere."""
    return torch.zeros_like(x_N).index_put_((at_K,), x_N[at_K])


def num_kept(x_N: Tensor) -> int:
    """Return the number of elements k to select in a layer."""
    return max(1, int(DENSITY * x_N.numel()))


def top(x_N: Tensor) -> Tensor:
    """Select the k largest magnitudes."""
    return sparse(x_N, x_N.abs().topk(num_kept(x_N), sorted=False).indices)


def random(x_N: Tensor) -> Tensor:
    """Select k elements at random."""
    return sparse(x_N, torch.randperm(x_N.numel())[: num_kept(x_N)])


def above(x_N: Tensor, threshold: Tensor | float) -> Tensor:
    """Select all magnitudes at or above the threshold."""
    return sparse(x_N, torch.where(x_N.abs() >= threshold)[0])


def fixed(x_N: Tensor) -> Tensor:
    """Select all magnitudes at or above a fixed threshold, the quantile of N(0, 1)."""
    return above(x_N, 2.5758 * float(x_N[: min(1024, x_N.numel())].norm()) / min(1024, x_N.numel()) ** 0.5)


def refined(x_N: Tensor, threshold: float, times: int, up: float, down: float) -> Tensor:
    """Scale the threshold until the number of elements above it is near k."""
    k = num_kept(x_N)
    for _ in range(times):
        count = int((x_N.abs() >= threshold).sum())
        if 0.7 * k <= count <= 1.3 * k:
            break
        threshold *= up if count > k else down
    return above(x_N, threshold)


def sampled(x_N: Tensor) -> Tensor:
    """Estimate the threshold from a sample of one hundredth, and refine it by counts (DGC)."""
    size = max(1, x_N.numel() // 100)
    sample_S = x_N[torch.randint(x_N.numel(), (size,))].abs()
    threshold = float(sample_S.topk(max(1, int(DENSITY * size))).values.min())
    return refined(x_N, threshold, 10, 1.3, 0.7)


def gaussian(x_N: Tensor) -> Tensor:
    """Take a normal distribution's quantile as threshold, and refine it by counts (Gaussian-k)."""
    deviation = float(x_N.std(correction=0))
    quantile = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - DENSITY)))
    return refined(x_N, quantile * deviation + abs(float(x_N.mean())), 10, 1.5, 0.5)


def searched(x_N: Tensor, times: int) -> Tensor:
    """Bisect between the mean and the largest magnitude, with one count per step (RedSync, MSTop-k)."""
    mean, largest = float(x_N.abs().mean()), float(x_N.abs().max())
    low, high, k = 0.0, 1.0, num_kept(x_N)
    threshold = mean
    for _ in range(times):
        ratio = (low + high) / 2
        threshold = mean + ratio * (largest - mean)
        count = int((x_N.abs() >= threshold).sum())
        if k <= count <= 2 * k:
            break
        low, high = (ratio, high) if count > k else (low, ratio)
    return above(x_N, threshold)


def exponential(x_N: Tensor) -> Tensor:
    """Take an exponential distribution's quantile as threshold, in two stages (SIDCo)."""
    magnitude_N = x_N.abs()
    first = float(magnitude_N.mean()) * math.log(4)
    left_K = magnitude_N[magnitude_N >= first]
    if left_K.numel() == 0:
        return above(x_N, first)
    return above(x_N, first - float((left_K - first).mean()) * math.log(4 * DENSITY))


def near_largest(x_N: Tensor, size: int = 50) -> Tensor:
    """Select elements near their bin's largest; they become a sign and the mean of the largest (AdaComp)."""
    x_BS = torch.nn.functional.pad(x_N, (0, -x_N.numel() % size)).view(-1, size)
    largest_B1 = x_BS.abs().amax(1, keepdim=True)
    sent_BS = (2 * x_BS).abs() >= largest_B1
    at_K = torch.where(sent_BS.view(-1)[: x_N.numel()])[0]
    code_K = x_N[at_K].sign().to(torch.int8)
    return torch.zeros_like(x_N).index_put_((at_K,), code_K.float() * largest_B1.mean())


METHODS: dict[str, Roundtrip] = {
    **dict.fromkeys(("onebit", "efsignsgd", "sign_norm"), signs),
    **dict.fromkeys(("signsgd", "signum"), unscaled_signs),
    "onebit_sgd": two_means,
    "int8": partial(blocks, dtype=torch.int8, largest=127.0),
    "fp8": partial(blocks, dtype=torch.float8_e4m3fn, largest=448.0),
    "terngrad": ternary,
    "natural": powers,
    "qsgd": partial(linear_levels, levels=7),
    "dithering": partial(linear_levels, levels=2),
    "dgc": sampled,
    "sidco": exponential,
    "gaussiank": gaussian,
    "redsync": partial(searched, times=20),
    "mstopk": partial(searched, times=25),
    **dict.fromkeys(("exdyna", "micro", "threshold", "sage"), fixed),
    **dict.fromkeys(("topk", "gtopk", "cltk", "deft", "oktopk"), top),
    "randomk": random,
    "adacomp": near_largest,
}
"""Compressors by the reducer's name, without options."""


def step(roundtrip: Roundtrip, layers: Sequence[Tensor], residuals: Sequence[Tensor]) -> None:
    """Add the residual to every layer, compress and decompress it, and store the difference."""
    for x_N, residual_N in zip(layers, residuals, strict=True):
        signal_N = x_N + residual_N
        residual_N.copy_(signal_N - roundtrip(signal_N))
