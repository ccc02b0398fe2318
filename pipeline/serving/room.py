"""Where classes are taught, forgotten and asked about: changes come one after another, and answers see all of one or none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch

from pipeline.adapt import doubts
from pipeline.serving.limits import Limits, Refused
from pipeline.serving.store import Group, State, Store
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.reading import Found, uneven
from pipeline.teaching.support import Support, chosen, joined


class Snapshot(NamedTuple):
    """What is known after a change. `model` is None while that is too little to answer by; `lacks` says then what is missing."""

    version: int
    counts: Mapping[str, int]
    ids: tuple[int, ...]
    support: Support | None
    model: Adapted | None
    lacks: str = ""

    @property
    def answering(self) -> Adapted:
        """The model.

        Raises:
            Refused: there is none yet.
        """
        if self.model is None:
            raise Refused(409, self.lacks)
        return self.model


class Learned(NamedTuple):
    """A class that was taught: its samples, the share told rightly of those left out of the support, and what is odd."""

    name: str
    samples: int
    accuracy: float | None
    warnings: list[str]


@final
class Room:
    """`snapshot` is read by any thread; `teach` and `forget` are called by one thread at a time."""

    def __init__(
        self,
        learner: Assembled,
        store: Store,
        limits: Limits,
        *,
        origin: Mapping[str, Any],
        known: Adapted | None = None,
    ):
        self.learner, self._store, self._limits, self._origin = learner, store, limits, origin
        state = store.read()
        if state is None:
            state = State(0, 0, ())
            if known is not None:
                count = len(known.support.inputs)
                state = State(0, count, (Group(known.support.to(torch.device("cpu")), tuple(range(count))),))
            # So that a restart with another model is noticed even if nobody teaches anything.
            state = store.write(state)
        self._state = state
        self.snapshot = self._seen(state)

    def close(self) -> None:
        """Let another process have the folder."""
        self._store.close()

    @property
    def most(self) -> int:
        """How many classes there may be."""
        return min(self._limits.classes, self.learner.most_ways or self._limits.classes)

    def check(self, name: str, count: int) -> None:
        """Whether `count` more samples of a class are too many.

        Raises:
            Refused: they are.
        """
        counts = self.snapshot.counts
        if name not in counts and len(counts) >= self.most:
            raise Refused(409, f"as many classes are taught as there may be, {self.most}; delete one")
        if (total := counts.get(name, 0) + count) > self._limits.samples:
            raise Refused(
                409, f"class {name!r} would have {total} samples, and may have {self._limits.samples}; send fewer"
            )

    def teach(self, name: str, found: Found) -> Learned:
        """Add samples to a class, or begin one. It is on the disk when this returns.

        Raises:
            Refused: there are too many classes or samples, or one is of another class already.
            InputError: the learner cannot learn from that, or the disk is full; nothing has changed then.
        """
        support = found.support.to(torch.device("cpu"))
        fresh, warnings = self._fresh(name, support)
        if len(fresh.inputs):
            self.check(name, len(fresh.inputs))
            first = self._state.next
            group = Group(fresh, tuple(range(first, first + len(fresh.inputs))))
            groups = list(self._state.groups)
            own = next((place for place, each in enumerate(groups) if each.support.classes == (name,)), None)
            if own is None:
                groups.append(group)
            else:
                groups[own] = Group(joined(groups[own].support, group.support), groups[own].ids + group.ids)
            self._change(tuple(groups), first + len(fresh.inputs))
        now = self.snapshot
        warnings = found.warnings + warnings + uneven(now.counts)
        accuracy = None if now.model is None else now.model.calibration.accuracy
        if now.model is not None:
            warnings += doubts(now.model)
        return Learned(name, now.counts[name], accuracy, warnings)

    def forget(self, name: str) -> None:
        """Delete a class; it is gone from the disk when this returns.

        Raises:
            Refused: there is none of that name.
        """
        if name not in self.snapshot.counts:
            raise Refused(404, f"class {name!r}: is not taught; choose one that is")
        groups = [each.without(name) if name in each.support.classes else each for each in self._state.groups]
        self._change(tuple(each for each in groups if each.ids), self._state.next)

    def _change(self, groups: tuple[Group, ...], following: int) -> None:
        state = State(self._state.version + 1, following, groups)
        # What the learner cannot take is found out before anything is written.
        snapshot = self._seen(state)
        self._state = self._store.write(state)
        self.snapshot = snapshot

    def _fresh(self, name: str, support: Support) -> tuple[Support, list[str]]:
        """Samples that are not known yet. Of whole images one cannot be of two classes."""
        if self.learner.config.task.kind not in ("classification", "verification"):
            return support, []
        known = {
            print_: group.support.classes[way]
            for group in self._state.groups
            for print_, way in zip(_prints(group.support), group.support.targets.tolist(), strict=True)
        }
        is_fresh = []
        for print_, called in zip(_prints(support), support.names, strict=True):
            other = known.get(print_, name)
            if other != name:
                raise Refused(
                    409, f"image {called!r} is there already, as one of {other!r}; delete that class, or leave it out"
                )
            is_fresh.append(print_ not in known)
        copies = len(is_fresh) - sum(is_fresh)
        told = [f"{copies} of these images are there already and count once"] if copies else []
        return chosen(support, torch.tensor(is_fresh)), told

    def _seen(self, state: State) -> Snapshot:
        if not state.groups:
            return Snapshot(state.version, {}, (), None, None, "no class is taught yet; teach one")
        support = joined(*(group.support for group in state.groups))
        ids = tuple(number for group in state.groups for number in group.ids)
        counts = Counter(dict(zip(support.classes, support.members().sum(0).tolist(), strict=True)))
        if self.learner.config.task.kind == "classification" and support.ways < 2:
            lacks = f"one class is taught, {support.classes[0]!r}, and nothing to tell it from; teach a second"
            return Snapshot(state.version, counts, ids, support, None, lacks)
        model = Adapted(self.learner, support.to(self.learner.inputs.device), origin=self._origin)
        return Snapshot(state.version, counts, ids, support, model)


def _prints(support: Support) -> Sequence[bytes]:
    return [hashlib.sha256(sample.numpy().tobytes()).digest() for sample in support.inputs.contiguous()]
