"""How much of a device a run uses: operations of a step against those of a large matrix product, both measured here.

Counting stands for three forwards a step (one forward and a backward of twice its work), whatever is recomputed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FORWARDS_A_STEP = 3
REPEATS = 4
# Sides of the matrices: large enough for the device's rate, small enough for a moment.
SIDE_CPU, SIDE_GPU = 768, 8192


def forward_operations(forward: Callable[[], object]) -> float:
    """Operations of one call, a product and a sum counted as two; attention as its two matrix products."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward()
    return float(counter.get_total_flops())


def matrix_rate(device: torch.device, *, half: bool) -> float:
    """Operations a second of a large matrix product on a device, the best of a few; half: in bf16."""
    side = SIDE_GPU if device.type == "cuda" else SIDE_CPU
    left, right = (torch.ones(side, side, device=device, dtype=torch.bfloat16 if half else None) for _ in range(2))
    best = 0.0
    for _ in range(REPEATS):
        began = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
        del product
    return best
