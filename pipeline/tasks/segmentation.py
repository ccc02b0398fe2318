"""Semantic segmentation: which of the episode's classes, or none of them, every pixel belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Metrics
from pipeline.labels import IGNORED
from pipeline.tasks.pixel_losses import Loss, cross_entropy, shares
from pipeline.tasks.task import Pooled, Task, exact_sums, half_width, of_class, resamples

BOUNDARY = 0.0075
"""How far a boundary may be off, in diagonals of the image (Csurka et al. 2013); a pixel at least."""
BINS = 200
"""Equal parts of 0…1 into which the probabilities of pixels fall that a curve is drawn from."""


@final
class Segmentation(Task):
    """Predictions are logits (samples, 1 + ways, height, width), targets (samples, height, width): 0 is what belongs to
    no class of the episode, 1 + w to its class w, 255 is not looked at.

    `iou` of an episode is its classes' mean intersection over union, each summed over the queries: by it models are chosen.
    `miou` sums over all episodes before it divides, and is a mean over the data set's classes: that is what papers report.
    """

    members = ("image", "mask")
    headline = "iou"

    def __init__(self, loss: Loss = cross_entropy):
        self._loss = loss

    def head(self, features: int, ways: int) -> nn.Module:
        return nn.Conv2d(features, self.outputs(ways), 1)

    def outputs(self, ways: int) -> int:
        return 1 + ways

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self._loss(predictions, targets)

    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        hits, predicted, true = _areas(predictions.detach(), targets).unbind(1)
        union = predicted + true - hits
        # A class that is neither there nor predicted has nothing wrong.
        iou = torch.where(union > 0, hits / union.clamp(min=1), 1)[1:]
        return {"iou": iou.mean().to(predictions.dtype)}

    def details(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """Means over the episode's classes of Dice (which is F1), precision and recall of pixels, and of the boundary's F1; the
        share of pixels that are right, ground included."""
        areas = _areas(predictions, targets)
        hits, predicted, true = areas[1:].unbind(1)
        found = {
            "dice": 2 * hits / (predicted + true).clamp(min=1),
            "precision": hits / predicted.clamp(min=1),
            "recall": hits / true.clamp(min=1),
            "boundary_f1": boundary_f1(predictions.argmax(1), targets, predictions.shape[1] - 1),
        }
        means = {name: value.mean() for name, value in found.items()}
        return means | {"pixel_accuracy": areas[:, 0].sum() / areas[:, 2].sum().clamp(min=1)}

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Pixels hit, predicted and true, of the ground and of every class: (1 + ways, 3)."""
        return _areas(predictions, targets).cpu()

    def pooled(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
        """Mean IoU over the classes of the data set, what it would be if every pixel were taken for the class, and FB-IoU, the
        mean of all classes' together and the ground's (Rakelly et al. 2018), each with the 95 % interval of a bootstrap over
        episodes."""
        counts = resamples(len(tallies))
        pixels = tallies[:, :, 2].sum(1)
        rows, floors = [], []
        for _, is_own, own in _by_class(tallies, classes):
            rows.append(_iou(counts, own))
            floors.append(counts @ own[:, 2] / (counts @ (pixels * is_own.any(1))))
        miou, floor = (torch.nanmean(torch.stack(each, 1), 1) for each in (rows, floors))
        ground, front = _iou(counts, tallies[:, 0]), _iou(counts, tallies[:, 1:].sum(1))
        found = {"miou": miou, "miou_of_all_pixels": floor, "fb_iou": (ground + front) / 2}
        return {name: Pooled(values[0].item(), half_width(values[1:])) for name, values in found.items()}

    def counts(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Pixels of the ground and of the foreground, all classes together, in every bin of the probability that a pixel is no
        ground: (2, BINS)."""
        chance = 1 - predictions.detach().softmax(1)[:, 0]
        places = (chance * BINS).long().clamp(0, BINS - 1)
        sides = (places[(targets == 0)], places[(targets != 0) & (targets != IGNORED)])
        return torch.stack([torch.bincount(side.flatten(), minlength=BINS) for side in sides]).double().cpu()

    def by_class(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[int, Pooled]:
        """IoU, each class's pixels of all episodes together."""
        counts, found = resamples(len(tallies)), {}
        for name, is_own, own in _by_class(tallies, classes):
            found[name] = of_class(_iou(counts, own), int(is_own.any(1).sum()))
        return found


def foreground_curve(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision (BINS,) of the foreground, one pair for each threshold from the highest on, from all episodes' counts
    (episodes, 2, BINS); precision is nan while nothing is taken."""
    alarms, hits = exact_sums(counts).flip(1).cumsum(1)
    return hits / hits[-1], hits / (hits + alarms)


def _by_class(tallies: Tensor, classes: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each class of the data set, which ways of which episodes are it (episodes, ways), and its areas there (episodes, 3)."""
    names = torch.tensor([list(own) for own in classes])
    for name in names.unique().tolist():
        is_own = names == name
        yield name, is_own, (tallies[:, 1:] * is_own[:, :, None]).sum(1)


def _iou(counts: Tensor, areas: Tensor) -> Tensor:
    """IoU of each resample (resamples, episodes) of areas (episodes, 3); nan where a class is in none of its episodes."""
    # Areas are whole numbers far below 2⁵³: their sums are exact in any order.
    hits, predicted, true = (counts @ areas).unbind(1)
    return hits / (predicted + true - hits)


def _areas(predictions: Tensor, targets: Tensor) -> Tensor:
    """Pixels hit, predicted and true of the ground and of every class, over all samples: (1 + ways, 3), float64."""
    outputs = predictions.shape[1]
    counted = targets != IGNORED
    predicted = shares(predictions.argmax(1), outputs) * counted[:, None]
    true = shares(targets, outputs)
    return torch.stack([(predicted * true), predicted, true]).double().sum((1, 3, 4)).T


def boundary_f1(predicted: Tensor, targets: Tensor, ways: int) -> Tensor:
    """F1 of the boundaries of each class (ways,), mean over the samples that have it in truth or prediction.

    A pixel of one boundary is found where the other's is within 0.75 % of the diagonal (Csurka et al. 2013, section 2.2). What is
    not looked at counts as predicted.
    """
    height, width = targets.shape[1:]
    reach = max(1, round(BOUNDARY * (height**2 + width**2) ** 0.5))
    predicted = torch.where(targets == IGNORED, 0, predicted)
    one, two = (_boundary(shares(values, 1 + ways)[:, 1:]) for values in (predicted, targets))
    near_one, near_two = (F.max_pool2d(edge, 2 * reach + 1, 1, reach) for edge in (one, two))
    precision, recall = (
        (edge * near).sum((2, 3)) / edge.sum((2, 3)).clamp(min=1) for edge, near in ((one, near_two), (two, near_one))
    )
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    there = ((one + two).sum((2, 3)) > 0).to(f1.dtype)
    return torch.where(there.sum(0) > 0, (f1 * there).sum(0) / there.sum(0).clamp(min=1), 1)


def _boundary(members: Tensor) -> Tensor:
    """The pixels of a region (…, height, width) that touch another one, or the image's edge."""
    inner = -F.max_pool2d(-F.pad(members, (1, 1, 1, 1)), 3, 1)
    return members - inner
