"""Features that need no training: what every trained model has to be better than.

Shapes: B samples, K filters, images (B, [time,] band, y, x) with a bool mask of the same shape, True = valid.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.mpmae import fold_time

PERCENTILES = (5, 25, 50, 75, 95)
# Random convolution features as in MOSAIKS (Rolf et al. 2021) and TorchGeo's RCF: filters, their side, and the bias.
FILTERS, FILTER_SIDE, FILTER_BIAS = 256, 3, -1.0
# Responses computed at a time, 4 MB: what fits into a cache is three times as fast.
RESPONSES = 2**20


def image_statistics(image: Tensor, valid: Tensor) -> np.ndarray:
    """Mean, standard deviation and percentiles of the valid pixels of each band, 0 for a band without any.

    image, valid: (B, [time,] band, y, x) -> (B, channels x (2 + percentiles)).
    """
    image, valid = fold_time(image, "pixel").flatten(2), fold_time(valid, "pixel").flatten(2)
    values = torch.where(valid, image, torch.nan).double()
    quantiles = torch.nanquantile(values, torch.tensor(PERCENTILES, dtype=values.dtype) / 100, dim=2)
    mean = values.nanmean(dim=2)
    std = (values - mean[..., None]).square().nanmean(dim=2).sqrt()
    return torch.cat([mean[None], std[None], quantiles]).permute(1, 2, 0).flatten(1).nan_to_num(0.0).numpy()


def random_convolutions(image: Tensor, valid: Tensor, *, seed: int) -> np.ndarray:
    """Means over an image of random filters' positive and negative responses, (B, 2 x K); invalid pixels are 0.

    The filters are Gaussian and depend on the seed and the number of bands alone.
    """
    image = torch.where(fold_time(valid, "pixel"), fold_time(image, "pixel"), 0.0).float()
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(FILTERS, image.shape[1], FILTER_SIDE, FILTER_SIDE, generator=generator)
    return torch.stack([_two_sided(one, filters) for one in image]).float().numpy()


def _two_sided(image: Tensor, filters: Tensor) -> Tensor:
    """(band, y, x) -> (2 x K): means of the positive and of the negative responses beyond the bias, strip by strip."""
    height, width = (side - FILTER_SIDE + 1 for side in image.shape[1:])
    rows = max(1, RESPONSES // (len(filters) * width))
    sums = torch.zeros(2, len(filters), dtype=torch.float64)
    for top in range(0, height, rows):
        responses = F.conv2d(image[:, top : top + rows + FILTER_SIDE - 1], filters)
        sums += torch.stack([(sign * responses + FILTER_BIAS).relu_().sum(dim=(1, 2)) for sign in (1, -1)])
    return (sums / (height * width)).flatten()
