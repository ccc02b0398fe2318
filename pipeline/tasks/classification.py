"""Image classification: which of the episode's classes is in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Metrics
from pipeline.tasks.losses import Loss, cross_entropy
from pipeline.tasks.task import Pooled, Task, exact_sums

BINS = 15
"""Equal parts of 0…1 into which confidences fall (Guo et al. 2017 use as many)."""


@final
class Classification(Task):
    """Predictions are logits (samples, ways), targets class numbers (samples,); support and query share one loss."""

    members = ("image",)
    headline = "accuracy"

    def __init__(self, loss: Loss = cross_entropy):
        self._loss = loss

    def head(self, features: int, ways: int) -> nn.Module:
        return nn.Linear(features, ways)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The mean over the samples. MAML's code sums over classes, so its inner rate is `ways` times one for this."""
        return self._loss(predictions, targets)

    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        hits = predictions.detach().argmax(-1) == targets
        return {"accuracy": hits.to(predictions.dtype).mean()}

    def details(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """Precision, recall and F1, macro: means over the episode's classes. A class never predicted has precision 0."""
        predicted, true = (F.one_hot(c, predictions.shape[-1]).double() for c in (predictions.argmax(-1), targets))
        hits = (predicted * true).sum(0)
        # Where a denominator is 0 there are no hits either.
        precision = hits / predicted.sum(0).clamp(min=1)
        recall = hits / true.sum(0).clamp(min=1)
        f1 = 2 * hits / (predicted.sum(0) + true.sum(0)).clamp(min=1)
        return {"precision": precision.mean(), "recall": recall.mean(), "f1": f1.mean()}

    def by_shots(self, predictions: Tensor, targets: Tensor, shots: Tensor) -> Metrics:
        """The accuracy of the third of the classes with the most support samples, of the next and of the last; where classes do
        not divide by three the first thirds have one more. Of at least three classes."""
        hits = (predictions.argmax(-1) == targets).double()
        thirds = shots.argsort(descending=True, stable=True).tensor_split(3)
        return {
            f"accuracy_{name}": hits[torch.isin(targets, own)].mean()
            for name, own in zip(("head", "mid", "tail"), thirds, strict=True)
        }

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Number, summed confidence and hits of the queries in every bin of confidence: (3, BINS)."""
        logits, targets = predictions.detach().cpu().double(), targets.cpu()
        confidence = logits.softmax(-1).amax(-1)
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
        members = F.one_hot(torch.bucketize(confidence, edges[1:-1]), BINS).double()
        hits = (logits.argmax(-1) == targets).double()
        return torch.stack([torch.ones_like(confidence), confidence, hits]) @ members

    def pooled(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
        """Expected calibration error: how far confidence is from accuracy in a bin, a query's mean (Guo et al. 2017, eq. 3)."""
        numbers, confidences, hits = exact_sums(tallies)
        return {"calibration_error": Pooled(((hits - confidences).abs().sum() / numbers.sum()).item())}

    def counts(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """How many queries of each class of the episode were taken for each: (ways, ways)."""
        ways = predictions.shape[-1]
        true, said = (F.one_hot(each.cpu(), ways).double() for each in (targets, predictions.detach().argmax(-1)))
        return true.T @ said


def confusion(counts: Sequence[Tensor], classes: Sequence[Sequence[int]]) -> tuple[list[int], Tensor]:
    """The classes of the data set, in their order, and how often a query of the one was taken for the other in the episodes that
    both are in: (classes, classes), nan for two that never met.

    From counts (ways, ways) of `Classification` and the classes that each episode is about. The row of a class need not add up to
    1: each of its shares is of other episodes.
    """
    names = sorted({number for own in classes for number in own})
    places = {number: place for place, number in enumerate(names)}
    taken, could = (torch.zeros(len(names), len(names), dtype=torch.float64) for _ in range(2))
    for found, own in zip(counts, classes, strict=True):
        at = torch.tensor([places[number] for number in own])
        cells = (at[:, None], at[None, :])
        taken.index_put_(cells, found, accumulate=True)
        # Every query of a class could have been taken for any other class of its episode.
        could.index_put_(cells, found.sum(1, keepdim=True).expand_as(found), accumulate=True)
    return names, taken / could
