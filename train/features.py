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
# Samples that are convolved at a time: so many filters of a whole chip need memory.
CONVOLVED = 4


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
    parts = []
    for few in image.split(CONVOLVED):
        responses = F.conv2d(few, filters)
        both = ((sign * responses + FILTER_BIAS).relu().mean(dim=(2, 3)) for sign in (1, -1))
        parts.append(torch.cat(list(both), dim=1))
    return torch.cat(parts).numpy()
