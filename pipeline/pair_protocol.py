"""The pair protocol: whether two images show one person, by a threshold that was chosen on other persons."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import ancestry, build, checkpoint, evaluate, restore, spool, tracking
from pipeline import config as configs
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.pairs import Pairs, held_fold, pairs_of
from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.frozen import Frozen, frozen_encoder
from pipeline.models.heads import directions
from pipeline.schema.learner import PrototypeConfig, WccnConfig
from pipeline.schema.run import RunConfig
from pipeline.tasks import roc
from pipeline.tasks.roc import Curve, Trials
from pipeline.tasks.task import Pooled, half_width, resamples

BATCH, COMPARED = 128, 4096
"""Images that are embedded at once, and pairs that are compared at once."""
REFERENCES = 600
"""Images of the validation split, at most, whose pairs choose a threshold."""

Compare = Callable[[Tensor, Tensor], Tensor]
"""Features (pairs, dim) of the one and the other image -> scores (pairs,), more is more alike."""
Embed = Callable[[np.ndarray], Tensor]
"""Rows (samples,) -> features (samples, dim)."""


class Fold(NamedTuple):
    """What was found of the pairs of one fold."""

    fold: int
    pairs: int
    threshold: float
    accuracy: float


class Judged(NamedTuple):
    """What was found of all pairs that were judged: figures by name, the curve, and fold by fold.

    `threshold_from` says in words on whom thresholds were chosen.
    """

    figures: dict[str, Pooled]
    curve: Curve
    folds: list[Fold]
    threshold_from: str

    def as_json(self) -> dict[str, Any]:
        """The figures with their intervals, and what they were measured on."""
        told = {name: {"mean": found.mean, "interval": found.interval} for name, found in self.figures.items()}
        folds = [fold._asdict() for fold in self.folds]
        return {
            **told,
            "pairs": sum(fold.pairs for fold in self.folds),
            "threshold_from": self.threshold_from,
            "folds": folds,
        }


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of the angle between two features."""
    return (directions(one) * directions(other)).sum(1)


def nearness(one: Tensor, other: Tensor) -> Tensor:
    """Minus the squared distance: the score that prototypical networks give one image for another."""
    return -(one - other).square().sum(1)


def judge(index: Index, embed: Embed, compare: Compare, *, validation: str) -> Judged:
    """Judge the pairs of the fold that the data were packed to hold out, or of all folds if there is none.

    The threshold of a fold is that of the best balanced accuracy among pairs of other persons: for a fold that was held out,
    every two of up to 600 images of the `validation` split, as nobody was trained on these; else, and where there is no such
    split, the pairs of the other folds. Intervals are those of a bootstrap over persons, whose pairs weigh as often as they are
    drawn, the product for a pair of two (Bolle et al. 2004, the subsets bootstrap).

    Raises:
        InputError: the data hold no pairs, or there is nobody to choose a threshold on.
    """
    pairs, held = pairs_of(index), held_fold(index)
    chosen = np.unique(pairs.fold) if held is None else np.array([held])
    judged = pairs.only(np.isin(pairs.fold, chosen))
    _check_kinds(judged, index)
    references = _references(index, validation) if held is not None else None
    looked_at = [pairs] if references is None else [judged, references]
    rows = np.unique(np.concatenate([side for some in looked_at for side in (some.a, some.b)]))
    features = embed(rows)

    def scored(some: Pairs) -> tuple[Tensor, Tensor]:
        places = (torch.from_numpy(np.searchsorted(rows, side)).split(COMPARED) for side in (some.a, some.b))
        scores = [compare(features[one], features[other]) for one, other in zip(*places, strict=True)]
        return torch.cat(scores).double(), torch.from_numpy(some.same.copy())

    scores, same = scored(judged)
    right, folds = torch.zeros(len(same), dtype=torch.bool), []
    for fold in chosen.tolist():
        mine = torch.from_numpy(judged.fold == fold)
        limit = threshold(*scored(_others(index, pairs, fold) if references is None else references))
        right[mine] = (scores[mine] >= limit) == same[mine]
        folds.append(Fold(fold, int(mine.sum()), limit, right[mine].double().mean().item()))
    persons = index.class_of[judged.a], index.class_of[judged.b]
    weights = _weights(*(torch.from_numpy(side.astype(np.int64)) for side in persons))
    trials = Trials(scores, same, torch.arange(len(same)))
    accuracy = weights @ right.double() / weights.sum(1)
    figures = {
        "accuracy": Pooled(right.double().mean().item(), half_width(accuracy)),
        **roc.pooled(trials, weights),
    }
    origin = "the pairs of the other folds" if references is None else f"persons of the split {validation}"
    return Judged(figures, roc.curve_of(trials), folds, origin)


def threshold(scores: Tensor, same: Tensor) -> float:
    """Halfway between two neighbouring scores, where the share of genuine pairs above less that of impostors is largest."""
    levels = torch.unique(scores).flip(0)
    found = roc.curve_of(Trials(scores, same, torch.zeros_like(same)))
    best = int((found.tar - found.far)[1:].argmax())
    return levels[best : best + 2].mean().item()


def _check_kinds(pairs: Pairs, index: Index) -> None:
    if pairs.same.all() or not pairs.same.any():
        kind = "different persons" if pairs.same.all() else "one person"
        raise InputError(f"{index.root}: the pairs that are judged have none of {kind}; name pairs of both kinds")


def _references(index: Index, split: str) -> Pairs | None:
    """Every two of some images of a split, the first of each person before the second of any; none without both kinds."""
    if split not in index.splits:
        return None
    members = [index.postings(int(number)) for number in index.splits[split]]
    ranked = sorted((place, int(row)) for rows in members for place, row in enumerate(rows))[:REFERENCES]
    rows = np.array([row for _, row in ranked], np.int32)
    one, other = np.triu_indices(len(rows), 1)
    same = index.class_of[rows[one]] == index.class_of[rows[other]]
    if same.all() or not same.any():
        return None
    return Pairs(np.full(len(one), -1, np.int32), rows[one], rows[other], same)


def _others(index: Index, pairs: Pairs, fold: int) -> Pairs:
    """The pairs of the other folds that have none of the persons of this one."""
    mine = pairs.fold == fold
    own = np.concatenate([index.class_of[side[mine]] for side in (pairs.a, pairs.b)])
    known = np.isin(index.class_of[pairs.a], own) | np.isin(index.class_of[pairs.b], own)
    found = pairs.only(~mine & ~known)
    if not len(found.same) or found.same.all() or not found.same.any():
        raise InputError(
            f"{index.root}: beside fold {fold} there are no pairs of other persons, of both kinds, to choose a threshold on; "
            "bring more folds, or pack with --fold and a split val"
        )
    return found


def _weights(one: Tensor, other: Tensor) -> Tensor:
    """How often every pair of persons (pairs,) is drawn in a bootstrap over persons: (resamples, pairs)."""
    persons, places = torch.unique(torch.cat([one, other]), return_inverse=True)
    drawn = resamples(len(persons))[1:]
    first, second = places[: len(one)], places[len(one) :]
    return torch.where(first == second, drawn[:, first], drawn[:, first] * drawn[:, second])


class Evaluated(NamedTuple):
    """What was found, of which checkpoint, and how its images were compared."""

    judged: Judged
    checkpoint: Path
    step: int
    score: str
    mirror: bool

    def as_json(self) -> dict[str, Any]:
        """As `Judged.as_json`, with the rest."""
        about = {"checkpoint": self.checkpoint.name, "step": self.step, "score": self.score, "mirror": self.mirror}
        return {**about, **self.judged.as_json()}


def evaluate_pairs(path: Path, *, data: Root | None = None, mirror: bool = False) -> Evaluated:
    """Judge the pairs of a run's data, or of other data, by the features that the encoder of a checkpoint makes of each image.

    Two images are compared as the learner does: by squared distance where it is a prototypical network, else by the cosine.
    Features depend on their own image alone: norm statistics are those kept by the run. With `mirror` they are the mean of
    those of the image and of its mirror image.

    Raises:
        InputError: the checkpoint has no such encoder, the data hold no pairs or do not fit it, or it was trained on somebody
            who is in the pairs that are judged.
    """
    saved = checkpoint.load(path)
    config = configs.parse(dict(saved.config), str(path))
    if isinstance(config.learner, WccnConfig):
        raise InputError(
            f"{path}: learner.kind = wccn has more than an encoder, and --pairs compares by that alone; name the encoder's run"
        )
    index = Index.open(data or config.data.root)
    _refuse_known(config, index)
    trained = build.trained_on(config, index, saved.state)
    encoder = frozen_encoder(config, trained, path, key="--pairs", mirror=mirror).encoder
    reader = build.reader(restore.read_alike(config, trained, index), index, trained.shape(0)[2])
    by_distance = isinstance(config.learner, PrototypeConfig)
    unseen = config.data.validation if config.data.validation != config.data.train else ""
    judged = judge(
        index,
        lambda rows: embedded(encoder, reader, rows),
        nearness if by_distance else cosine,
        validation=unseen,
    )
    return Evaluated(judged, path, saved.step, "-distance²" if by_distance else "cosine", mirror)


@torch.no_grad()
def embedded(encoder: Frozen, reader: Reader, rows: np.ndarray) -> Tensor:
    """The features (samples, dim) of these rows, on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    like, parts = next(encoder.to(device).parameters()), []
    for part in np.split(rows, range(BATCH, len(rows), BATCH)):
        reader.shards.bring(part.tolist(), reader.modalities)
        inputs = reader.inputs(part, map(reader.stored, part.tolist()), repeat(0, len(part)))
        parts.append(encoder(inputs.to(like.device, like.dtype)).flatten(1).cpu())
    return torch.cat(parts)


def _refuse_known(config: RunConfig, index: Index) -> None:
    """Refuse persons in the pairs to be judged on whom a run, the one that it started from or its teacher was trained.

    Persons of two data sets are one if their names are.
    """
    pairs, held = pairs_of(index), held_fold(index)
    judged = pairs.only(np.full(len(pairs.fold), True) if held is None else pairs.fold == held)
    rows = np.concatenate([judged.a, judged.b])
    people = {index.class_names[number]: int(number) for number in np.unique(index.class_of[rows])}
    for known in ancestry.trained(config):
        if both := sorted(people.keys() & known.classes()):
            of_class = index.class_of[rows] == people[both[0]]
            fold = int(np.tile(judged.fold, 2)[of_class][0])
            raise InputError(
                f"{both[0]!r} of fold {fold} is in the split {known.split!r} of {known.index.root}, on which {known.name} "
                f"was trained ({len(both)} such persons): who was seen in training is no test; train on data packed with "
                f"--fold {fold}"
            )


def keep(found: Evaluated) -> Path | None:
    """Log the figures to the run whose checkpoint this is, with the curve, and send both to its MLflow; where they are kept."""
    from pipeline.pictures.curves import roc_picture  # a second

    run = restore.run_of(found.checkpoint)
    if run is None:
        return None
    name = "pairs-mirror" if found.mirror else "pairs"
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{name}-{found.checkpoint.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    evaluate.write(found.as_json(), kept)
    title = f"{sum(fold.pairs for fold in found.judged.folds)} pairs, {found.score}"
    curve = found.judged.curve
    drawn = roc_picture(run / "pictures" / f"roc-{name}.png", (curve.far.numpy(), curve.tar.numpy()), title=title)
    told = spool.Spool(run)
    means = {f"evaluate/{name}/{figure}": value.mean for figure, value in found.judged.figures.items()}
    told.metrics(found.step, means)
    told.artifact(kept, "evaluations")
    told.artifact(drawn, "pictures")
    told.close()
    tracking.sync(run, uri=tracking.target_uri(run))
    return kept
