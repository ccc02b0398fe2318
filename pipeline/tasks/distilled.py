"""A task whose loss listens to a teacher as well as to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from torch import Tensor, nn

from pipeline.episode import Metrics
from pipeline.tasks.task import Pooled, Task


class Taught(NamedTuple):
    """Targets with what a teacher says of the same samples: labels (samples,), logits (samples, ways)."""

    labels: Tensor
    logits: Tensor


@final
class Distilled(Task):
    """Another task, whose loss on targets that a teacher has seen is mixed with its advice (Hinton et al. 2015, section 2).

    (1 − w) · task loss + w · T² · KL(p ‖ q), p and q being the softmax of the teacher's and of the student's logits divided by
    the temperature T; T² keeps the size of the gradient. Plain targets have the plain loss.
    """

    def __init__(self, task: Task, *, weight: float, temperature: float):
        self.task, self.weight, self.temperature = task, weight, temperature
        self.members, self.headline = task.members, task.headline

    def head(self, features: int, ways: int) -> nn.Module:
        return self.task.head(features, ways)

    def loss(self, predictions: Tensor, targets: Tensor | Taught) -> Tensor:
        if not isinstance(targets, Taught):
            return self.task.loss(predictions, targets)
        own, said = ((logits / self.temperature).log_softmax(1) for logits in (predictions, targets.logits))
        # Not F.kl_div: vmap has no rule for it.
        divergence = (said.exp() * (said - own)).sum(1).mean()
        own_loss = self.task.loss(predictions, targets.labels)
        return (1 - self.weight) * own_loss + self.weight * self.temperature**2 * divergence

    def metrics(self, predictions: Tensor, targets: Tensor | Taught) -> Metrics:
        return self.task.metrics(predictions, targets.labels if isinstance(targets, Taught) else targets)

    def details(self, predictions: Tensor, targets: Tensor) -> Metrics:
        return self.task.details(predictions, targets)

    def by_shots(self, predictions: Tensor, targets: Tensor, shots: Tensor) -> Metrics:
        return self.task.by_shots(predictions, targets, shots)

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self.task.tally(predictions, targets)

    def pooled(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
        return self.task.pooled(tallies, classes)
