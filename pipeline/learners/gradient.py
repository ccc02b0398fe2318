"""Learners that adapt by gradient steps: initial × rule × estimate on a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.episode import Batch, Episode, Outcome, Params
from pipeline.learners.estimators import Estimator
from pipeline.learners.initials import Initial
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.learners.rules import Rule
from pipeline.learners.unroll import InnerProblem, trajectory
from pipeline.models.norm import Given, Normalise, Recorded, by_batch
from pipeline.tasks.task import Task


@final
class GradientLearner(Learner):
    """MAML and its kin (Finn, Abbeel and Levine 2017): take `steps` inner steps on the support loss.

    While it trains, and in transductive mode, norm layers use the statistics of the batch at hand, as in the paper's
    code; in inductive mode queries are normalised by the support's statistics under the adapted weights.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        *,
        initial: Initial,
        rule: Rule,
        estimate: Estimator,
        steps: int,
        test_steps: int,
    ):
        super().__init__()
        self.model, self.task, self.initial, self.rule = model, task, initial, rule
        self.estimate, self.steps, self.test_steps = estimate, steps, test_steps

    def outcome(self, episode: Episode) -> Outcome:
        fast = self.initial(self._params(), episode.support, episode.ways)
        return self.estimate(self._problem(episode.support, episode.query, self.steps), fast)

    @torch.no_grad()
    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        *_, predictor = self.predictors(support, ways, mode=mode)
        return predictor

    @torch.no_grad()
    def predictors(self, support: Batch, ways: int, *, mode: Mode) -> Iterator[Predictor]:
        """A predictor before adaptation and after each of the `test_steps` inner steps, for adaptation curves."""
        problem = self._problem(support, support, self.test_steps)
        start = self.initial(self._params(), support, ways)
        for fast in trajectory(problem, start, second_order=False):
            yield self._predictor(fast, self._normalise(fast, support, mode))

    def _params(self) -> Params:
        return dict(self.model.named_parameters())

    def _call(self, fast: Params, inputs: Tensor, normalise: Normalise = by_batch) -> Tensor:
        return functional_call(self.model, {**self._params(), **fast}, (inputs, normalise))

    def _problem(self, support: Batch, query: Batch, steps: int) -> InnerProblem:
        def support_loss(fast: Params) -> Tensor:
            return self.task.loss(self._call(fast, support.inputs), support.targets)

        def judged(fast: Params) -> Outcome:
            predictions = self._call(fast, query.inputs)
            loss = self.task.loss(predictions, query.targets)
            return Outcome(loss, self.task.metrics(predictions, query.targets), {})

        return InnerProblem(support_loss, judged, self.rule, steps)

    def _normalise(self, fast: Params, support: Batch, mode: Mode) -> Normalise:
        if mode is Mode.TRANSDUCTIVE:
            return by_batch
        recorded = Recorded()
        self._call(fast, support.inputs, recorded)
        return Given(recorded.statistics)

    def _predictor(self, fast: Params, normalise: Normalise) -> Predictor:
        return torch.no_grad()(lambda inputs: self._call(fast, inputs, normalise))
