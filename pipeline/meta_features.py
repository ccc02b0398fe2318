"""What a support set is like, in numbers: size, looks of its images, how far its classes lie apart in a fixed embedding.

samples: of the support; side: of the form in which all images are looked at; dim: of the embedding.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.episode import Batch
from pipeline.noise import Noise, Purpose

SIDE = 28
"""Pixels along each side to which images are brought, in grey, before they are looked at."""
FILTERS, KERNEL = 32, 5
INK = 0.25
"""How far from the image's median a pixel must be to count as ink, in 0…1."""


def meta_features(support: Batch, ways: int, *, size: float) -> dict[str, float]:
    """The meta-features of a support set: inputs (samples, channels, height, width) in 0…1, targets (samples,).

    `size` is the side of its images, in pixels, before they were resized. Neither the order of the samples nor which class has
    which number matters. Shots are told as of the class with fewest and on average.
    """
    shots = torch.bincount(support.targets, minlength=ways).double()
    images = grey(support.inputs)
    return {
        "ways": float(ways),
        "shots": shots.mean().item(),
        "least_shots": shots.min().item(),
        "size": float(size),
        **looks(images),
        **separability(embedding(images), support.targets, ways),
    }


def grey(inputs: Tensor) -> Tensor:
    """Images (samples, channels, height, width) as (samples, 1, side, side): means over channels and areas."""
    return F.adaptive_avg_pool2d(inputs.float().mean(1, keepdim=True), SIDE)


def looks(images: Tensor) -> dict[str, float]:
    """Statistics of grey images (samples, 1, side, side): means over samples, and how much brightness differs among them."""
    pixels = images.flatten(1).double()
    brightness = pixels.mean(1)
    across, down = (images.diff(dim=axis).abs().flatten(1).double().mean() for axis in (3, 2))
    ink = (pixels - pixels.median(1, keepdim=True).values).abs() > INK
    return {
        "brightness": brightness.mean().item(),
        "brightness_spread": brightness.std(correction=0).item(),
        "contrast": pixels.std(1, correction=0).mean().item(),
        "edges": ((across + down) / 2).item(),
        "ink": ink.double().mean().item(),
        "median": pixels.median(1).values.mean().item(),
    }


def embedding(images: Tensor) -> Tensor:
    """Grey images as (samples, dim): one layer of fixed random filters, rectified, pooled to 7 × 7 cells (Saxe et al. 2011 find
    that such features tell images apart without any training)."""
    responses = F.conv2d(images, _filters(), padding=KERNEL // 2)
    return F.adaptive_avg_pool2d(responses.relu(), SIDE // 4).flatten(1).double()


@cache
def _filters() -> Tensor:
    """Filters of mean 0 and length 1, the same on every machine."""
    drawn = torch.from_numpy(Noise(0, Purpose.INITIALISE).normals(FILTERS * KERNEL**2)).reshape(
        FILTERS, 1, KERNEL, KERNEL
    )
    centred = drawn - drawn.mean((2, 3), keepdim=True)
    return (centred / centred.norm(dim=(2, 3), keepdim=True)).float()


def separability(features: Tensor, labels: Tensor, ways: int) -> dict[str, float]:
    """How far classes lie apart: features (samples, dim), labels (samples,) of at least two classes.

    `between` is the root mean squared distance of two class means, `nearest` that of a class from the nearest other, `within` of
    a sample from its class mean, with n / (n − 1) for the n samples of a class (0 for a lone one). `separability` is
    between² / (between² + within²), and `separability_nearest` the same of the nearest: 1 where classes are points.
    """
    members = F.one_hot(labels, ways).to(features.dtype)
    counts = members.sum(0)
    means = members.T @ features / counts[:, None]
    squared = (means[:, None] - means[None, :]).square().sum(2)
    apart = ~torch.eye(ways, dtype=torch.bool)
    between = squared[apart].mean()
    nearest = squared.masked_fill(~apart, math.inf).amin(1).mean()
    spread = (features - means[labels]).square().sum(1)
    unbiased = counts / (counts - 1).clamp(min=1)
    within = (unbiased[labels] * spread).mean()
    # Of images that are all alike nothing lies apart.
    tiny = torch.finfo(features.dtype).tiny
    return {
        "between": between.sqrt().item(),
        "nearest": nearest.sqrt().item(),
        "within": within.sqrt().item(),
        "separability": (between / (between + within).clamp(min=tiny)).item(),
        "separability_nearest": (nearest / (nearest + within).clamp(min=tiny)).item(),
    }
