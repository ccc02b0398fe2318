"""COCO's figures of detection: which boxes are found is judged by pycocotools, precision over recall is summed up here.

The sums are those of `COCOeval.accumulate`, which a test holds them to; they are here so that the resamples of a bootstrap can
count an episode as often as it was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SIDE = 1000.0
"""Boxes are shares of an image; COCO counts in pixels. All areas are counted alike, so that any side will do."""
LEAST = 0.01
"""What scores less is not told."""
MOST = 100
"""Detections of an image and class that are looked at, as in COCO."""
AT_ONCE = 1 << 22
"""Numbers of one class and some resamples that are in memory at a time."""
AP50, AP75 = 0, 5
"""Places of these thresholds of IoU in `Figures`, where all ten of COCO's are asked for."""


class Found(NamedTuple):
    """What is judged of one image: detections (detections, 6), left, top, right, bottom, score and way, truths (boxes, 5) as in
    an episode's targets, both in shares of the sides; and which class of all that there are each way is."""

    detections: Tensor
    truths: Tensor
    classes: Sequence[int]


class Judged(NamedTuple):
    """The detections of one class, its number in `name`, in all images, the surest first.

    scores: (detections,) float64. hits, alarms: (thresholds, detections) float64, whether it found an object, or nothing. source:
    (detections,) the number of the group that its image is of. objects: (groups,) float64, how many there are.
    """

    name: int
    scores: Tensor
    hits: Tensor
    alarms: Tensor
    source: Tensor
    objects: Tensor


class Figures(NamedTuple):
    """Mean over the classes, (resamples, thresholds): average precision and largest recall."""

    precision: Tensor
    recall: Tensor


def judged(
    images: Sequence[Found], groups: Sequence[int], *, thresholds: Sequence[float] | None = None
) -> list[Judged]:
    """Compare detections and truths at COCO's thresholds of IoU (or others), class by class.

    `groups` says of each image which group, from 0 on, it belongs to.
    """
    import numpy as np  # tasks need torch alone until something is evaluated
    from pycocotools.cocoeval import COCOeval

    evaluation: Any = COCOeval(*_data(images), iouType="bbox")
    settings = evaluation.params
    settings.maxDets, settings.areaRng, settings.areaRngLbl = [MOST], [[0, 1e10]], ["all"]
    if thresholds is not None:
        settings.iouThrs = np.array(thresholds)
    # As `evaluate` does, which prints; figures are told by others.
    evaluation._prepare()
    pairs = sorted(evaluation._gts.keys() | evaluation._dts.keys())
    evaluation.ious = {(image, name): evaluation.computeIoU(image, name) for image, name in pairs}
    by_class: dict[int, list[tuple[int, dict]]] = {}
    for image, name in pairs:
        told = evaluation.evaluateImg(image, name, settings.areaRng[0], MOST)
        if told is not None:
            by_class.setdefault(name, []).append((groups[image], told))
    count = max(groups) + 1
    return [_together(name, found, count) for name, found in sorted(by_class.items())]


def _data(images: Sequence[Found]) -> tuple[Any, Any]:
    """Truths and detections as pycocotools holds them."""
    from pycocotools.coco import COCO

    names = sorted({name for image in images for name in image.classes})
    both: tuple[Any, Any] = COCO(), COCO()
    for made in both:
        made.dataset = {"images": [], "annotations": [], "categories": [{"id": name} for name in names]}
    for number, (detections, truths, classes) in enumerate(images):
        rows = [
            (both[0], *box, abs(int(code)) - 1, {"iscrowd": int(code < 0)}) for *box, code in truths.tolist() if code
        ]
        rows += [(both[1], *box, int(way), {"score": s}) for *box, s, way in detections.tolist() if s > LEAST]
        for made, left, top, right, bottom, way, more in rows:
            across, down = SIDE * (right - left), SIDE * (bottom - top)
            told = {"image_id": number, "category_id": classes[way], "area": across * down, "iscrowd": 0, **more}
            # A detection that found object 0 would count as one that found none.
            told |= {"id": 1 + len(made.anns), "bbox": [SIDE * left, SIDE * top, across, down]}
            made.anns[told["id"]] = told
            made.imgToAnns[number].append(told)
        for made in both:
            made.imgs[number] = {"id": number}
    return both


def _together(name: int, found: Sequence[tuple[int, dict]], groups: int) -> Judged:
    import numpy as np

    objects = torch.zeros(groups, dtype=torch.float64)
    for group, told in found:
        objects[group] += int((1 - np.asarray(told["gtIgnore"], float)).sum())
    scores = np.concatenate([told["dtScores"] for _, told in found]).astype(float)
    order = np.argsort(-scores, kind="mergesort")
    counted = ~np.concatenate([np.asarray(told["dtIgnore"], bool) for _, told in found], axis=1)[:, order]
    matched = np.concatenate([told["dtMatches"] for _, told in found], axis=1)[:, order] > 0
    source = np.concatenate([np.full(len(told["dtScores"]), group) for group, told in found])[order]
    hits, alarms = (torch.from_numpy((part & counted).astype(float)) for part in (matched, ~matched))
    return Judged(
        name, torch.from_numpy(scores[order]), hits, alarms, torch.from_numpy(source.astype(np.int64)), objects
    )


def figures(classes: Sequence[Judged], counts: Tensor) -> Figures:
    """COCO's average precision (101 points of recall) and recall, each group counted as often as `counts` (resamples, groups)
    float64 says. A class without an object in a resample has no part in its means."""
    rows = [class_figures(found, counts) for found in classes]
    precision, recall = (torch.stack(part) for part in zip(*rows, strict=True))
    return Figures(precision.nanmean(0), recall.nanmean(0))


def class_figures(found: Judged, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and recall (resamples, thresholds) of one class; nan where it has no object."""
    at_once = max(1, AT_ONCE // max(1, found.hits.numel()))
    precision, recall = zip(*(_part_figures(found, part) for part in counts.split(at_once)), strict=True)
    return torch.cat(precision), torch.cat(recall)


def _part_figures(found: Judged, counts: Tensor) -> tuple[Tensor, Tensor]:
    points, recall = points_of(found, counts)
    return points.mean(-1), recall


def points_of(found: Judged, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Precision of one class at COCO's 101 points of recall from 0 to 1, (resamples, thresholds, 101), and its largest recall,
    (resamples, thresholds); nan where it has no object."""
    import numpy as np

    weight = counts[:, found.source]
    hits, alarms = ((weight[:, None] * part).cumsum(-1) for part in (found.hits, found.alarms))
    objects = (counts @ found.objects)[:, None, None]
    recall = hits / torch.where(objects > 0, objects, torch.nan)
    precision = hits / (hits + alarms).clamp(min=torch.finfo(torch.float64).eps)
    # The best precision at this recall or a larger one; none beyond the largest.
    precision = torch.cat([precision, precision.new_zeros(*precision.shape[:2], 1)], -1)
    envelope = precision.flip(-1).cummax(-1).values.flip(-1)
    points = torch.from_numpy(np.linspace(0.0, 1.0, 101)).expand(*recall.shape[:2], 101).contiguous()
    places = torch.searchsorted(recall.nan_to_num(0).contiguous(), points)
    nothing = torch.where(objects > 0, 0.0, torch.nan)
    last = torch.cat([torch.zeros_like(objects).expand(*recall.shape[:2], 1), recall], -1)[..., -1]
    return envelope.gather(-1, places) + nothing, last + nothing[..., 0]
