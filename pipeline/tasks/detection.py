"""Object detection: boxes around the objects of the episode's classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Metrics
from pipeline.tasks.box_maps import box_loss, decoded, heat_loss, iou, wanted
from pipeline.tasks.coco import AP50, AP75, MOST, Figures, Found, Judged, class_figures, figures, judged, points_of
from pipeline.tasks.task import Pooled, Task, half_width, of_class, resamples

PRIOR = -math.log((1 - 0.1) / 0.1)
"""Logit of a cell of which nothing is known: a tenth (CornerNet, section 4.1), so that ground does not drown objects at first."""
LONGEST = 6.0
"""Logarithm of the longest distance from a cell to a side, in cells."""
ALIKE = 0.6
"""IoU above which the less sure of two detections of a class is taken for the same object (FCOS, section 4)."""
SIDES = 4
RESAMPLES = 200
"""Of the bootstrap: each sorts all detections."""


def outputs_of(logits: Tensor, distances: Tensor) -> Tensor:
    """Predictions (samples, ways + 4, height, width) from maps as convolutions give them."""
    return torch.cat([logits + PRIOR, distances.clamp(-LONGEST, LONGEST).exp()], 1)


@final
class DetectionHead(nn.Module):
    """Features (samples, features, height, width) -> predictions: a score for every class, `classes`, and one box for
    whichever of them is there, `sides`."""

    def __init__(self, features: int, ways: int):
        super().__init__()
        self.classes = nn.Conv2d(features, ways, 1)
        self.sides = nn.Conv2d(features, SIDES, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return outputs_of(self.classes(features), self.sides(features))


@final
class Detection(Task):
    """A dense detector without anchors. Predictions are (samples, ways + 4, height, width): for every cell of a map the logits
    that an object of each class has its centre there (Zhou et al. 2019, "Objects as Points"), and the distances from the
    cell's middle to the four sides of that object's box in cells (FCOS; Tian et al. 2019). Targets are boxes (samples, boxes,
    5), padded by zeros: left, top, right, bottom as shares of the image's sides, and 1 + w for class w, or minus that for what
    is not to be looked at.

    `ap50` of an episode is COCO's average precision at an IoU of 0.5 over its queries: by it models are chosen. The figures
    called `coco_…` take the queries of all episodes together, and are means over the data set's classes.
    """

    members = ("image", "json")
    headline = "ap50"
    per_way = ("classes.weight", "classes.bias")

    def __init__(self, *, box_weight: float = 1.0):
        self.box_weight = box_weight

    def head(self, features: int, ways: int) -> nn.Module:
        return DetectionHead(features, ways)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Focal loss of the centres + `box_weight` · (1 − generalised IoU) of the boxes, each a mean over the objects."""
        logits, distances = _exact(predictions)
        asked = wanted(targets.to(logits.dtype), logits.shape[1], *logits.shape[2:])
        return heat_loss(logits, asked) + self.box_weight * box_loss(distances, asked)

    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """What can be had of maps alone: in which share of images the likeliest cell of a class that is there lies in one of its
        objects, and the mean IoU of what the cells at the objects' centres say of their boxes."""
        logits, distances = _exact(predictions.detach())
        asked = wanted(targets.to(logits.dtype), logits.shape[1], *logits.shape[2:])
        there = asked.centres.flatten(2).any(-1).to(logits.dtype)
        best = logits.flatten(2).argmax(-1, keepdim=True)
        hit = asked.covered.flatten(2).gather(-1, best)[..., 0] * there
        centres = asked.centres.any(1).to(logits.dtype)
        overlap = iou(decoded(distances).movedim(1, -1), asked.boxes.movedim(1, -1)) * centres
        found = {
            "pointing": hit.sum() / there.sum().clamp(min=1),
            "centre_iou": overlap.sum() / centres.sum().clamp(min=1),
        }
        return {name: value.to(predictions.dtype) for name, value in found.items()}

    def verdict(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return _of_episode(predictions, targets, thresholds=(0.5,)).precision[0, 0]

    def details(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """COCO's average precision, its values at IoU 0.5 and 0.75, and recall of the episode's queries."""
        precision, recall = _of_episode(predictions, targets)
        each = precision[0]
        return {"ap50": each[AP50], "ap": each.mean(), "ap75": each[AP75], "recall": recall[0].mean()}

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Detections and truths of every query: (samples, 100 + boxes, 6)."""
        truths = F.pad(targets.cpu().double(), (0, 1))
        return torch.cat([detections(predictions).cpu().double(), truths], 1)

    def pooled(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
        """COCO's mAP, AP50, AP75 and recall of all queries of all episodes, each query an image, with the 95 % interval
        of a bootstrap over episodes."""
        precision, recall = figures(_judged(tallies, classes), resamples(len(tallies), RESAMPLES))
        found = {
            "coco_map": precision.mean(1),
            "coco_ap50": precision[:, AP50],
            "coco_ap75": precision[:, AP75],
            "coco_recall": recall.mean(1),
        }
        return {name: Pooled(values[0].item(), half_width(values[1:])) for name, values in found.items()}

    def by_class(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[int, Pooled]:
        """COCO's AP50 of a class, the queries of all episodes that are about it together."""
        counts, told = resamples(len(tallies), RESAMPLES), {}
        for found in _judged(tallies, classes, thresholds=(0.5,)):
            precision, _ = class_figures(found, counts)
            told[found.name] = of_class(precision[:, 0], sum(found.name in own for own in classes))
        return told


def recall_curves(tallies: Tensor, classes: Sequence[Sequence[int]], thresholds: Sequence[float]) -> Tensor:
    """COCO's precision, mean over the classes, at recalls 0, 0.01, … 1 for every threshold of IoU: (thresholds, 101)."""
    once = torch.ones(1, len(tallies), dtype=torch.float64)
    rows = [points_of(found, once)[0][0] for found in _judged(tallies, classes, thresholds=thresholds)]
    return torch.stack(rows).nanmean(0)


def surest(predictions: Tensor, targets: Tensor, *, otherwise: float, margin: float = 0.0) -> list[float]:
    """The score of each way from which on detections have the largest F1 at IoU 0.5, half way to the next less sure; `otherwise`
    where that is no better by more than `margin`."""
    ways = range(predictions.shape[1] - SIDES)
    told = [otherwise for _ in ways]
    for found in _judged(Detection().tally(predictions, targets)[None], [ways], thresholds=(0.5,)):
        hits = F.pad(found.hits[0].cumsum(0), (1, 0))
        # With the n surest ones told.
        f1 = 2 * hits / (torch.arange(len(hits)) + found.objects.sum()).clamp(min=1)
        best, usual = int(f1.argmax()), int((found.scores >= otherwise).sum())
        if f1[best] - f1[usual] > margin:
            told[found.name] = found.scores[best - 1 : best + 1].mean().item()
    return told


def _judged(
    tallies: Tensor, classes: Sequence[Sequence[int]], *, thresholds: Sequence[float] | None = None
) -> list[Judged]:
    """The queries of all episodes, each an image, judged class by class; groups are episodes."""
    images = [
        Found(query[:MOST], query[MOST:, :5], list(own))
        for episode, own in zip(tallies, classes, strict=True)
        for query in episode
    ]
    groups = torch.arange(len(tallies)).repeat_interleave(tallies.shape[1]).tolist()
    return judged(images, groups, thresholds=thresholds)


def _exact(predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and distances, in float32 at least: sides of boxes are finer than bfloat16."""
    exact = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
    return exact[:, :-SIDES], exact[:, -SIDES:]


def _of_episode(predictions: Tensor, targets: Tensor, *, thresholds: Sequence[float] | None = None) -> Figures:
    ways = range(predictions.shape[1] - SIDES)
    pairs = zip(detections(predictions).cpu().double(), targets.cpu().double(), strict=True)
    images = [Found(found, truths, ways) for found, truths in pairs]
    return figures(judged(images, [0] * len(images), thresholds=thresholds), torch.ones(1, 1, dtype=torch.float64))


@torch.no_grad()
def detections(predictions: Tensor) -> Tensor:
    """As `candidates`, with what is no detection at the end."""
    told = candidates(predictions)
    order = told[..., 4].argsort(dim=-1, descending=True, stable=True)
    return told.gather(1, order[..., None].expand_as(told))


def candidates(predictions: Tensor) -> Tensor:
    """The likeliest boxes of each sample, the surest first: (samples, 100, 6), left, top, right, bottom as shares of the
    sides, score and way; all 0 is no detection.

    Cells that are likelier than their eight neighbours speak for their object (Zhou et al. 2019, section 4), and of boxes of
    a class that are nearly alike the surest counts.
    """
    logits, distances = _exact(predictions)
    samples, ways, height, width = logits.shape
    # Logits, not scores: whether a rounding makes two neighbours alike is then the same on every machine.
    peaks = torch.where(F.max_pool2d(logits, 3, 1, 1) == logits, logits, -torch.inf).flatten(1)
    best, places = peaks.topk(min(MOST, peaks.shape[1]))
    found = best.sigmoid()
    way, cell = places // (height * width), places % (height * width)
    size = logits.new_tensor([width, height, width, height])
    boxes = decoded(distances).flatten(2).transpose(1, 2)
    picked = (boxes.gather(1, cell[..., None].expand(-1, -1, SIDES)) / size).clamp(0, 1)
    told = torch.cat([picked, (found * _distinct(picked, way))[..., None], way[..., None].to(picked.dtype)], -1)
    # Of cells that are no peaks any may be among the hundred.
    return F.pad(told * (told[..., 4:5] > 0), (0, 0, 0, MOST - told.shape[1]))


def _distinct(boxes: Tensor, ways: Tensor) -> Tensor:
    """Which boxes (samples, boxes, 4), the surest first, are not nearly a surer one that is itself kept: (samples, boxes)."""
    alike = (iou(boxes[:, :, None], boxes[:, None]) > ALIKE) & (ways[:, :, None] == ways[:, None])
    kept = torch.ones_like(ways, dtype=torch.bool)
    for number in range(boxes.shape[1]):
        later = torch.arange(boxes.shape[1], device=boxes.device) > number
        kept = kept & ~(alike[:, number] & later & kept[:, number, None])
    return kept
