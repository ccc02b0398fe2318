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
