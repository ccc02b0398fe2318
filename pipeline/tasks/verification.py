"""Verification and identification: is this the person, and who of those known is it, if any?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from pipeline.episode import Metrics
from pipeline.tasks import roc
from pipeline.tasks.classification import Classification
from pipeline.tasks.losses import Loss, cross_entropy
from pipeline.tasks.roc import Trials
from pipeline.tasks.task import Pooled, Task, half_width, resamples

OPEN_FARS = ("1e-1", "1e-2")


@final
class Verification(Task):
    """Predictions are scores (samples, ways) of a query against every class of the episode, its gallery; targets are class
    numbers (samples,). More is more alike.

    `accuracy` is closed-set identification, rank 1. Over all episodes together every score is a trial: genuine if it is that of
    the query's own class, else an impostor. So a score must mean the same in every episode. That of a metric learner
    does: −distance² or a cosine. Logits of a learner that fits a classifier to the support (gradient learners, ridge, svm …) are
    trained to be right up to a constant for each query; their figures say how well one threshold serves them all the same.

    `is_apart` says that a score for a class depends on this class's support and the query alone. Then a query without its own
    class has the scores that are left, and is a person who is not in the gallery: `dir_at_far` is the share of queries that are
    identified, rank 1 and above the threshold at which that share of such strangers is taken for somebody (Phillips et al. 2011,
    "Evaluation Methods in Face Recognition", section 2). In transductive mode batch statistics have seen the class that is left
    out.
    """

    members = ("image",)
    headline = "accuracy"

    def __init__(self, loss: Loss = cross_entropy, *, is_apart: bool):
        self._classes, self.is_apart = Classification(loss), is_apart

    def head(self, features: int, ways: int) -> nn.Module:
        return self._classes.head(features, ways)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self._classes.loss(predictions, targets)

    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        return self._classes.metrics(predictions, targets)

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The target and the scores of every query: (samples, 1 + ways)."""
        return torch.cat([targets[:, None].to(predictions.dtype), predictions.detach()], 1).double().cpu()

    def pooled(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
        """AUC, equal error rate, true acceptance at false acceptance rates 0.1, 0.01 and 0.001, and detection and identification
        at 0.1 and 0.01, each with the 95 % interval of a bootstrap over episodes."""
        weights = resamples(len(tallies))[1:]
        found = roc.pooled(trials(tallies), weights)
        if self.is_apart:
            found |= _identified(tallies, weights)
        return found


def trials(tallies: Tensor) -> Trials:
    """Every score of every query of tallies (episodes, samples, 1 + ways) as a trial of its episode."""
    scores, own = tallies[..., 1:], _own(tallies)
    unit = torch.arange(len(tallies))[:, None, None].expand_as(scores)
    return Trials(scores.flatten(), own.flatten(), unit.flatten())


def _own(tallies: Tensor) -> Tensor:
    """Which scores are those of a query's own class: (episodes, samples, ways)."""
    return tallies[..., :1] == torch.arange(tallies.shape[-1] - 1)


def _identified(tallies: Tensor, weights: Tensor) -> dict[str, Pooled]:
    """Detection and identification rates at false alarm rates, of tallies (episodes, samples, 1 + ways)."""
    scores, own = tallies[..., 1:], _own(tallies)
    genuine = torch.where(own, scores, 0).sum(-1)
    others = torch.where(own, -torch.inf, scores).amax(-1)
    # Who is taken for somebody else is found at no threshold.
    known = torch.where(genuine >= others, genuine, -torch.inf)
    is_known = torch.tensor([True, False])[:, None, None].expand(2, *known.shape)
    unit = torch.arange(len(tallies))[None, :, None].expand(2, *known.shape)
    probes = Trials(torch.stack([known, others]).flatten(), is_known.flatten(), unit.flatten())
    one, several = roc.curve_of(probes), roc.resampled(probes, weights)
    return {
        f"dir_at_far_{name}": Pooled(
            roc.tar_at(one, roc.FARS[name]).item(), half_width(roc.tar_at(several, roc.FARS[name]))
        )
        for name in OPEN_FARS
    }
