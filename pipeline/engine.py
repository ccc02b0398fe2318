"""How the episodes of a step are executed: in a loop, vmapped, compiled, side by side on several threads; chosen by measuring."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from pipeline.calculus import around
from pipeline.episode import Batch, Episode, Outcome, Params
from pipeline.learners.learner import Learner
from pipeline.memory import peak_bytes
from pipeline.side_by_side import SideBySide

COMPILE_S = 900.0
"""Compiling takes one to twenty minutes: where the rest of a run takes less than this without, it is not tried."""


FINALISTS = 3
"""Plans that are timed again before one is chosen."""


Part = tuple[Batch, Batch, Tensor]
"""The tensors of an episode: support, query, key."""


class Plan(NamedTuple):
    """How to execute: `chunk` episodes per forward and backward; part of a run (law 3).

    `loop`: one after another. `vmap`: a chunk at once. `compiled`: forward and backward of a chunk traced together and
    compiled by TorchInductor, so that what lies between convolutions is one kernel.

    With `abreast` > 1 as many chunks are computed at the same time, each on a thread of its own: the operations of an episode
    are often too small to be shared by threads. Otherwise a chunk has all threads of the process.
    """

    mode: Literal["loop", "vmap", "compiled"]
    chunk: int
    layout: Literal["last", "first"] = "last"
    """Where the channels lie in memory: channels-last or, "first", contiguous."""
    abreast: int = 1

    def __str__(self) -> str:
        abreast = f", {self.abreast} side by side" if self.abreast > 1 else ""
        return f"{self.mode} × {self.chunk}{abreast}, channels {self.layout}"


LOOP = Plan("loop", 1)
"""The plan that always works: an error of it is one of the learner."""


class Trial(NamedTuple):
    """What measuring a plan gave: seconds per meta-step on these episodes, or why there are none."""

    plan: Plan
    seconds: float
    reason: str = ""


def signature(episode: Episode) -> tuple:
    """Episodes of equal signature can be stacked."""
    tensors = (*episode.support, *episode.query)
    return episode.ways, tuple(tuple(tensor.shape) for tensor in tensors)


def chunks(episodes: Sequence[Episode], plan: Plan) -> list[list[Episode]]:
    """The episodes in parts, each for one forward: of one signature, at most `plan.chunk`, or all for chunks side by side.
    Chunks of one episode need not be alike."""
    ordered = sorted(episodes, key=signature)
    if plan.abreast > 1 and plan.chunk == 1:
        return [ordered]
    groups = [list(group) for _, group in groupby(ordered, key=signature)]
    return groups if plan.abreast > 1 else [part for group in groups for part in _cut(group, plan.chunk)]


def _cut(episodes: list[Episode], size: int) -> list[list[Episode]]:
    return [episodes[at : at + size] for at in range(0, len(episodes), size)]


@final
class Engine(nn.Module):
    """The module that DDP wraps: `forward` gives the sum of the outcomes of some episodes.

    `is_traced`: what it computes is recorded as a graph, inside transforms of `torch.func`.
    """

    def __init__(self, learner: Learner, plan: Plan, autocast: torch.dtype | None = None, *, is_traced: bool = False):
        super().__init__()
        self.learner, self.plan, self.autocast, self.is_traced = learner, plan, autocast, is_traced
        self._compiled: dict[tuple, Callable[..., tuple[Params, Outcome]]] = {}
        self._threads: dict[tuple, SideBySide[Learner]] = {}
        self.lay_out()

    def lay_out(self) -> None:
        """Put the learner's weights in memory as the plan has it; another engine on the same learner may have moved them."""
        layout = torch.channels_last if self.plan.layout == "last" else torch.contiguous_format
        self.learner.to(memory_format=layout)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, episodes: Sequence[Episode]) -> Outcome:
        """Sum of loss, metrics and norm statistics over the episodes of a part (`chunks`).

        Without episodes the loss is a zero that depends on every parameter: a backward through it lets DDP settle
        its buckets before the first step, so that a resumed process adds in the same order as the first.
        """
        if not episodes:
            return Outcome(torch.stack([0 * p.sum() for p in _trained(self.learner).values()]).sum(), {}, {})
        if self.plan.abreast > 1:
            return self._abreast(episodes)
        # A part shorter than the others would need a compilation of its own.
        if self.plan.mode == "compiled" and len(episodes) == self.plan.chunk and self._may_stack(episodes):
            gradients, outcome = self._from_graph(episodes)
            return self._derived(outcome, [gradients[name] for name in _trained(self.learner)])
        return self._outcome(self.learner, episodes)

    def _outcome(self, learner: Learner, episodes: Sequence[Episode]) -> Outcome:
        """The summed outcomes of a chunk, by the learner or a twin of it."""
        device = episodes[0].query.inputs.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            if self.plan.mode != "loop" and len(episodes) > 1 and self._may_stack(episodes):
                return _together(learner, episodes)
            with around("func" if self.is_traced or learner.transforms else "nothing"):
                outcomes = [learner(episode) for episode in episodes]
        return _added(outcomes)

    def _may_stack(self, episodes: Sequence[Episode]) -> bool:
        return len(episodes) == 1 or self.plan.layout == "first" or not _has_lone_sample(episodes[0])

    def _abreast(self, episodes: Sequence[Episode]) -> Outcome:
        """As `forward`, chunks side by side. Who adds up what does not depend on which thread is the faster."""

        def work(learner: Learner, parts: Iterable[Sequence[Episode]]) -> tuple[list[Tensor], Outcome]:
            trained, slopes, outcomes = list(_trained(learner).values()), [], []
            for part in parts:
                outcome = self._outcome(learner, part)
                more = torch.autograd.grad(outcome.loss, trained, materialize_grads=True)
                slopes = list(map(torch.add, slopes, more)) if slopes else list(more)
                outcomes.append(tree_map(torch.Tensor.detach, outcome))
            return slopes, _added(outcomes)

        tensors = (*self.learner.parameters(), *self.learner.buffers())
        key = (self.learner.phase(), tuple(map(id, tensors)))
        if key not in self._threads:
            self._threads = {key: SideBySide(self.learner, self.plan.abreast)}
        shares = self._threads[key].each(work, _cut(list(episodes), self.plan.chunk))
        slopes = functools.reduce(lambda sums, more: list(map(torch.add, sums, more)), [own for own, _ in shares])
        return self._derived(_added([outcome for _, outcome in shares]), slopes)

    def _derived(self, outcome: Outcome, slopes: list[Tensor]) -> Outcome:
        """The outcome with a loss that has these gradients at what is trained."""
        loss = _Derived.apply(outcome.loss, slopes, *_trained(self.learner).values())
        return outcome._replace(loss=loss)

    def _from_graph(self, episodes: Sequence[Episode]) -> tuple[Params, Outcome]:
        trained = _trained(self.learner)
        held = {**dict(self.learner.named_parameters()), **dict(self.learner.named_buffers())}
        parts = [(e.support, e.query, e.key) for e in episodes]
        arguments = ({name: value.detach() for name, value in held.items()}, parts)
        key = (signature(episodes[0]), len(episodes), self.learner.phase())
        if key not in self._compiled:
            self._compiled[key] = self._compile(arguments, frozenset(trained), episodes[0].ways)
        return self._compiled[key](*arguments)

    def _compile(self, arguments: tuple, trained: frozenset[str], ways: int) -> Callable[..., tuple[Params, Outcome]]:
        """Loss and gradient of a chunk as one graph; weights, buffers and episodes are its inputs."""
        plan = self.plan._replace(mode="vmap" if self.plan.chunk > 1 else "loop")
        plain = Engine(self.learner, plan, self.autocast, is_traced=True)

        def loss(wanted: Params, others: Params, parts: list[Part]) -> tuple[Tensor, Outcome]:
            lent = {f"learner.{name}": value for name, value in {**wanted, **others}.items()}
            episodes = [Episode(support, query, ways, key) for support, query, key in parts]
            outcome = functional_call(plain, lent, (episodes,))
            return outcome.loss, outcome

        def both(held: Params, parts: list[Part]) -> tuple[Params, tuple]:
            wanted = {name: value for name, value in held.items() if name in trained}
            others = {name: value for name, value in held.items() if name not in trained}
            gradients, outcome = torch.func.grad(loss, has_aux=True)(wanted, others, parts)
            return gradients, tuple(tree_map(torch.Tensor.detach, outcome))

        graph = torch.compile(make_fx(both)(*arguments), dynamic=False)

        def call(*arguments: Any) -> tuple[Params, Outcome]:
            with torch.no_grad():
                gradients, outcome = graph(*arguments)
            return gradients, Outcome(*outcome)

        return call


def _trained(learner: Learner) -> Params:
    return {name: value for name, value in learner.named_parameters() if value.requires_grad}


def _has_lone_sample(episode: Episode) -> bool:
    """Whether support or query is one sample, which adapted weights must not meet under vmap in channels-last.

    There each episode has weights of its own, and the convolutions of all become one of as many groups. Of one image, whose
    layout its strides do not tell, torch's own kernel then takes the derivative at the weights from the wrong places.
    """
    return 1 in (len(episode.support.inputs), len(episode.query.inputs))


def _together(learner: Learner, episodes: Sequence[Episode]) -> Outcome:
    """The summed outcomes of episodes stacked along a first axis."""
    ways = episodes[0].ways
    supports, queries = _stacked([e.support for e in episodes]), _stacked([e.query for e in episodes])
    each = torch.func.vmap(lambda support, query, key: learner(Episode(support, query, ways, key)), randomness="error")
    return _summed(each(supports, queries, torch.stack([e.key for e in episodes])))


def _stacked(parts: Sequence[Batch]) -> Batch:
    return Batch(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))


def _added(outcomes: Sequence[Outcome]) -> Outcome:
    return _summed(tree_map(lambda *parts: torch.stack(parts), *outcomes))


class _Derived(torch.autograd.Function):
    """A value whose gradient is known: as `with_gradient`, with one pass over the parameters instead of six."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor], *_: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, None, *(scale * slope for slope in ctx.slopes)


def _summed(stacked: Outcome) -> Outcome:
    def total(tensor: Tensor) -> Tensor:
        return tensor.sum(0)

    return tree_map(total, stacked)


def candidates(
    count: int, *, room: int, threads: int, patient: bool, layout: Literal["last", "first"] = "last"
) -> list[Plan]:
    """The plans worth trying for `count` episodes a rank, of which `room` fit into memory at once.

    `threads` is how many chunks may be computed side by side. `patient`: the run is long enough for compiling and for looking
    at more than a few; a short run should start soon. `layout` is that of stacked episodes.
    """
    sizes = sorted({size for size in (8, 16, count) if 1 < size <= min(count, room)})
    plain = [Plan("loop", 1), *(Plan("vmap", size, layout) for size in sizes)]
    abreast = _side_by_side(count, room, threads, layout)
    # Side by side both are faster than not, wherever there is more than one thread.
    quick = abreast or plain[:2]
    if not patient:
        return quick
    late = [plan for plan in (*plain, Plan("loop", 1, "first")) if plan not in quick]
    late += [plan._replace(layout="first") for plan in abreast[:1] if plan.layout == "last"]
    # The parts of a step should be equal: a shorter one would run uncompiled.
    whole = [size for size in sizes if count % size == 0]
    return [*quick, *late, Plan("compiled", 1), *(Plan("compiled", size, layout) for size in whole[:1])]


def _side_by_side(count: int, room: int, threads: int, layout: Literal["last", "first"]) -> list[Plan]:
    """Episodes, and chunks of up to eight under `vmap`, side by side; none where there is one thread, or room for one."""
    abreast = min(threads, count, room)
    if abreast < 2:
        return []
    size = min(8, count // 2, room // 2)
    chunked = [Plan("vmap", size, layout, min(threads, count // size, room // size))] if size > 1 else []
    return [Plan("loop", 1, abreast=abreast), *chunked]


def measure(
    learner: Learner,
    episodes: Sequence[Episode],
    autocast: torch.dtype | None = None,
    *,
    steps: int = 0,
    memory: int = 1 << 62,
) -> list[Trial]:
    """The plans tried on these episodes here and now, the fastest first.

    Each runs once to warm up, then twice for its time. `memory` is the budget in bytes. Where `steps` meta-steps at the best
    speed so far would take longer than `COMPILE_S`, more plans are tried, compiled ones too.
    """
    largest = max(episodes, key=lambda episode: len(episode.support.inputs) + len(episode.query.inputs))
    taken = peak_bytes(lambda: _pass(Engine(learner, Plan("loop", 1), autocast), [largest]))
    room = memory // max(1, taken)
    # A GPU is kept busy by one thread.
    threads = 1 if episodes[0].query.inputs.is_cuda else torch.get_num_threads()
    lone = any(map(_has_lone_sample, episodes))
    tried = functools.partial(candidates, len(episodes), room=room, threads=threads, layout="first" if lone else "last")
    engines = {plan: Engine(learner, plan, autocast) for plan in tried(patient=False)}
    trials = [_try(engine, episodes) for engine in engines.values()]
    if all(trial.reason for trial in trials):
        # As where a learner of one's own cannot be copied for other threads. What is wrong with it itself is raised here.
        engines[LOOP] = Engine(learner, LOOP, autocast)
        trials.append(_try(engines[LOOP], episodes))
    is_long = min(trial.seconds for trial in trials) * steps > COMPILE_S
    if is_long:
        late = {plan: Engine(learner, plan, autocast) for plan in tried(patient=True) if plan not in engines}
        engines |= late
        trials += [_try(engine, episodes) for engine in late.values()]
    trials.sort(key=lambda trial: trial.seconds)
    if not is_long:
        return trials
    # The first look may have fallen on a disturbance, as the end of a compilation: the best run again, in turns.
    finalists = [trial.plan for trial in trials[:FINALISTS] if trial.seconds < float("inf")]
    again = {plan: [_try(engines[plan], episodes).seconds for _ in range(2)] for plan in finalists}
    better = [trial._replace(seconds=min([trial.seconds, *again.get(trial.plan, [])])) for trial in trials]
    return sorted(better, key=lambda trial: trial.seconds)


def _try(engine: Engine, episodes: Sequence[Episode]) -> Trial:
    try:
        engine.lay_out()
        return Trial(engine.plan, _time(engine, episodes))
    except Exception as error:
        # No compiler on this machine, a graph it cannot take, too little memory: the other plans remain.
        if engine.plan == LOOP:
            raise
        return Trial(engine.plan, float("inf"), f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    finally:
        engine.learner.zero_grad(set_to_none=True)


def _pass(engine: Engine, episodes: Sequence[Episode]) -> None:
    for chunk in chunks(episodes, engine.plan):
        engine(chunk).loss.backward()


def _time(engine: Engine, episodes: Sequence[Episode]) -> float:
    best = float("inf")
    for attempt in range(3):
        began = time.perf_counter()
        _pass(engine, episodes)
        if episodes[0].query.inputs.is_cuda:
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - began)
    return best
