"""Learners that adapt by gradient steps: initial × rule × estimate on a model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.episode import Batch, Episode, Outcome, Params
from pipeline.errors import InputError
from pipeline.learners.estimators import Estimate
from pipeline.learners.initials import Initial
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.learners.rules import Rule
from pipeline.learners.unroll import InnerProblem, trajectory
from pipeline.models.drop import DropBlock
from pipeline.models.network import Network
from pipeline.models.norm import ByBatch, Given, Norm, Normalise, Recorded, Running
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance


@final
class GradientLearner(Learner):
    """MAML and its kin (Finn, Abbeel and Levine 2017): take `steps` inner steps on the support loss.

    While it trains, and in transductive mode, norm layers use the statistics of the batch at hand, as in the paper's
    code; in inductive mode queries are normalised by the support's statistics under the adapted weights. With `running`, the
    statistics of the run it starts from, these are used instead, in training too: only transductive mode does without.

    With `support_weight` λ the meta-loss is query loss + λ · support loss, both at the adapted weights.
    """

    transforms = False

    def __init__(
        self,
        model: Network,
        task: Task,
        *,
        initial: Initial,
        rule: Rule,
        estimate: Estimate,
        steps: int,
        test_steps: int,
        support_weight: float = 0.0,
        running: Running | None = None,
    ):
        super().__init__()
        for name in initial.replaced:
            model.get_parameter(name).requires_grad_(False)
        self.model, self.task, self.initial, self.rule, self.running = model, task, initial, rule, running
        self.estimate, self.steps, self.test_steps, self.support_weight = estimate, steps, test_steps, support_weight
        self.advice = estimate.advice
        # Every inner step then sees the same features of the support.
        self.adapts_head_alone = all(name.startswith("head.") for name in initial.names) and not any(
            _depends_on_step(part) for part in model.encoder.modules()
        )
        self._check()

    def begin(self, step: int) -> None:
        self.estimate.begin(step)

    def phase(self) -> Hashable:
        return self.estimate.phase()

    @torch.no_grad()
    def breaks(self, episode: Episode) -> int | None:
        problem = self._problem(episode, self.steps, chance=Chance(episode.key))
        for step, fast in enumerate(trajectory(problem, second_order=False)):
            if not all(bool(value.isfinite().all()) for value in fast.values()):
                return step
        return None

    def _check(self) -> None:
        """Refuse a composition in which a meta-parameter would never get a gradient."""
        way_out = "use learner.estimate.kind = unrolled, first_order or es"
        if not self.estimate.differentiates_rules and any(True for _ in self.rule.parameters()):
            raise InputError(
                f"the estimate {_kind(self.estimate)} gives no gradient to the learned rule {_kind(self.rule)}; {way_out}, or "
                "es_rule with it as the rest, or learner.rule.kind = sgd"
            )
        slow = {n for n, p in self.model.named_parameters() if p.requires_grad} - self.initial.names
        if not self.estimate.differentiates_slow and (slow or self.initial.replaced):
            named = ", ".join(sorted(slow or self.initial.replaced)[:3])
            raise InputError(
                f"the estimate {_kind(self.estimate)} gives a gradient only to what starts learned and adapts, not to {named}; "
                f'set learner.adapts = ".*", or {way_out}'
            )

    def outcome(self, episode: Episode) -> Outcome:
        return self.estimate(self._problem(episode, self.steps, chance=Chance(episode.key)))

    @torch.no_grad()
    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        problem = self._problem(Episode(support, support, ways), self.test_steps, mode)
        *_, fast = trajectory(problem, second_order=False)
        return self._predictor(fast, self._normalise(fast, support, mode, self.test_steps))

    @torch.no_grad()
    def predictors(
        self, support: Batch, ways: int, *, mode: Mode, steps: int | None = None, pace: float = 1.0
    ) -> Iterator[Predictor]:
        """A predictor before adaptation and after each of the inner steps, as many as configured unless said, for adaptation
        curves; `pace` multiplies what the rule adds to fast weights."""
        taken = self.test_steps if steps is None else steps
        problem = self._problem(Episode(support, support, ways), taken, mode, pace=pace)
        for step, fast in enumerate(trajectory(problem, second_order=False)):
            yield self._predictor(fast, self._normalise(fast, support, mode, step))

    def _call(self, params: Mapping[str, Tensor], fast: Params, inputs: Tensor, normalise: Normalise) -> Tensor:
        return functional_call(self.model, {**params, **fast}, (inputs, normalise))

    def _problem(
        self,
        episode: Episode,
        steps: int,
        mode: Mode = Mode.INDUCTIVE,
        *,
        chance: Chance | None = None,
        pace: float = 1.0,
    ) -> InnerProblem:
        support, query, ways, _ = episode
        mine: Params = dict(self.named_parameters())

        def within(place: str, step: int) -> Normalise:
            # The same samples lose other activations at another step.
            return self._within(mode, step, chance and chance.at(f"{place}/{step}"))

        def embed(params: Params, inputs: Tensor) -> Tensor:
            return functional_call(self.model.encoder, _part("encoder", params), (inputs, within("start", 0)))

        def start(meta: Params) -> Params:
            arguments = (_part("model", meta), support, ways, embed)
            return functional_call(self.initial, _part("initial", meta), arguments)

        # Here and not at the first step: what is made inside `torch.func.grad` must not be kept beyond it.
        features = embed(_part("model", mine), support.inputs) if self.adapts_head_alone else None

        def support_loss(meta: Params, fast: Params, step: int) -> Tensor:
            params = _part("model", meta)
            if features is not None and meta is mine:
                predictions = functional_call(self.model.head, _part("head", {**params, **fast}), (features,))
            else:
                predictions = self._call(params, fast, support.inputs, within("support", step))
            return self.task.loss(predictions, support.targets)

        def judged(meta: Params, fast: Params, step: int) -> Outcome:
            predictions = self._call(_part("model", meta), fast, query.inputs, within("query", step))
            loss = self.task.loss(predictions, query.targets)
            metrics = self.task.metrics(predictions, query.targets)
            if self.support_weight:
                loss = loss + self.support_weight * support_loss(meta, fast, step)
            return Outcome(loss, metrics, {})

        def init(meta: Params, fast: Params):
            return self.rule.init(fast)

        def update(meta: Params, gradients: Params, fast: Params, loss: Tensor, state, step: int):
            arguments = (gradients, fast, loss, state)
            updates, state = functional_call(self.rule, _part("rule", meta), arguments, {"step": step})
            if pace != 1.0:
                updates = {name: pace * value for name, value in updates.items()}
            return updates, state

        return InnerProblem(mine, start, support_loss, judged, init, update, steps)

    def _within(self, mode: Mode, step: int, chance: Chance | None = None) -> Normalise:
        """How a batch is normalised in the inner loop and in training."""
        if self.running is None or mode is Mode.TRANSDUCTIVE:
            return ByBatch(step, chance)
        return Given(self.running.statistics(), step, chance)

    def _normalise(self, fast: Params, support: Batch, mode: Mode, step: int) -> Normalise:
        """How queries are normalised after adapting."""
        if self.running is not None or mode is Mode.TRANSDUCTIVE:
            return self._within(mode, step)
        recorded = Recorded(step)
        self._call(dict(self.model.named_parameters()), fast, support.inputs, recorded)
        return Given(recorded.statistics, step)

    def _predictor(self, fast: Params, normalise: Normalise) -> Predictor:
        params = dict(self.model.named_parameters())
        return torch.no_grad()(lambda inputs: self._call(params, fast, inputs, normalise))


def _depends_on_step(part: nn.Module) -> bool:
    """Whether a layer gives something else at another inner step."""
    return (isinstance(part, Norm) and part.steps is not None) or (isinstance(part, DropBlock) and part.drop > 0)


def _kind(part: nn.Module) -> str:
    return type(part).__name__


def _part(name: str, params: Params) -> Params:
    """What belongs to the submodule of this name, by the names it has in there."""
    start = f"{name}."
    return {full.removeprefix(start): value for full, value in params.items() if full.startswith(start)}
