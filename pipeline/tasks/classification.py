"""Image classification: which of the episode's classes is in the picture."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Metrics
from pipeline.tasks.task import Task


@final
class Classification(Task):
    """Predictions are logits (samples, ways), targets class numbers (samples,)."""

    members = ("image",)
    headline = "accuracy"

    def head(self, features: int, ways: int) -> nn.Module:
        return nn.Linear(features, ways)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (nats). MAML's code sums over classes, so its inner rate is `ways` times one for this."""
        return F.cross_entropy(predictions, targets)

    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        hits = predictions.detach().argmax(-1) == targets
        return {"accuracy": hits.to(predictions.dtype).mean()}
