"""Claim: which samples are labelled matters: at an equal budget, chosen support beats random support on classes never trained on.

An episode has unlabelled samples of some classes of a split, and others as queries. A strategy sees the features of the former
alone and chooses `budget` of them; their labels are told, and queries go to the nearest mean of those of a class (Euclidean, the
run's own metric). A class of which nothing was chosen is never said, so that its queries are wrong. All strategies have the same
episodes and queries; random support is the mean over DRAWS of it, and the rest are compared with that, episode by episode. With
several runs (of other seeds) an episode's figure is the mean over them; how much each run gains stands beside.
"""

from __future__ import annotations

import argparse
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import build, checkpoint, restore
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.data.sampler import Sampler, classes_of
from pipeline.data.shapes import Shape
from pipeline.frozen import frozen_encoder
from pipeline.judging import score
from pipeline.learners.metric import class_means, squared_distance
from pipeline.noise import Noise, Purpose
from pipeline.selection import Strategy, choose

BATCH = 256
DRAWS = 10
"""Of random support in every episode."""


class Episode(NamedTuple):
    """Rows of the pool and of the queries, and the class of each, 0 to ways − 1."""

    pool: np.ndarray
    pool_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


class Told(NamedTuple):
    """Of an episode: accuracy, and the share of classes of which something was chosen."""

    accuracy: float
    found: float


def features_of(path: Path, index: Index, split: str) -> np.ndarray:
    """Features (samples, dim) of the samples of a split under the encoder of a checkpoint; zeros for all others."""
    saved = checkpoint.load(path)
    config = parse(dict(saved.config), str(path))
    known, reader = frozen_encoder(config, Index.without_shards(config.data.root), path), build.reader(config, index)
    rows = np.sort(np.concatenate([index.postings(int(number)) for number in classes_of(index, split)])).tolist()
    parts = []
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        parts.append(known.encoder(reader.inputs(part, map(reader.stored, part), repeat(0, len(part)))).flatten(1))
    found = torch.cat(parts).numpy()
    whole = np.zeros((len(index), found.shape[1]), found.dtype)
    whole[rows] = found
    return whole


def episode(sampler: Sampler, number: int) -> Episode:
    """The episode of this number; its pool is in random order, so that no place says a class."""
    drawn = sampler.draw(0, number)
    pool, query = np.concatenate(drawn.support), np.concatenate(drawn.query)
    order = Noise(0, Purpose.CHOICE, 1, number).shuffled(list(range(len(pool))))
    labels = np.repeat(np.arange(len(drawn.classes)), [len(own) for own in drawn.support])
    asked = np.repeat(np.arange(len(drawn.classes)), [len(own) for own in drawn.query])
    return Episode(pool[order], labels[order], query, asked)


def told(features: np.ndarray, own: Episode, chosen: list[int]) -> Told:
    """What the labels of the chosen samples are worth."""
    known, labels = np.unique(own.pool_labels[chosen], return_inverse=True)
    support, query = torch.from_numpy(features[own.pool[chosen]]), torch.from_numpy(features[own.query])
    means = class_means(support, torch.from_numpy(labels), len(known))
    said = known[squared_distance(query, means).argmin(1).numpy()]
    return Told(float((said == own.query_labels).mean()), len(known) / (1 + int(own.query_labels.max())))


def by_strategy(features: np.ndarray, own: Episode, budget: int, number: int) -> dict[Strategy, Told]:
    """The figures of every strategy in one episode."""
    pool, made = features[own.pool], {}
    for strategy in Strategy:
        seeds = [number * DRAWS + draw for draw in range(DRAWS)] if strategy is Strategy.RANDOM else [number]
        figures = [told(features, own, choose(pool, budget, strategy, seed=seed)) for seed in seeds]
        made[strategy] = Told(*(float(np.mean(values)) for values in zip(*figures, strict=True)))
    return made


def measured(encoders: list[np.ndarray], sampler: Sampler, budget: int, episodes: int) -> None:
    """Print a table row for every strategy."""
    drawn = [episode(sampler, number) for number in range(episodes)]
    # figures: (runs, episodes) of each strategy
    found = [[by_strategy(features, own, budget, n) for n, own in enumerate(drawn)] for features in encoders]
    base = np.array([[told[Strategy.RANDOM].accuracy for told in run] for run in found])
    for strategy in Strategy:
        accuracy = np.array([[told[strategy].accuracy for told in run] for run in found])
        classes = np.mean([[told[strategy].found for told in run] for run in found])
        gain = accuracy - base
        by_run = ", ".join(f"{100 * value:+.2f}" for value in gain.mean(1))
        difference = "–" if strategy is Strategy.RANDOM else f"{score(gain.mean(0).tolist())} ({by_run})"
        own = score(accuracy.mean(0).tolist())
        print(f"| {budget} | {strategy} | {own} | {100 * classes:.1f} % | {difference} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="runs or checkpoints with an encoder, of one data set")
    parser.add_argument("--split", default="val")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--pool", type=int, default=10, help="unlabelled samples per class")
    parser.add_argument("--queries", type=int, default=10, help="per class")
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 25])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes")
    parser.add_argument("--quick", action="store_true", help="few episodes, to see that it works")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    paths = [restore.find(run, Path("runs")) for run in asked.runs]
    index = Index.open(parse(dict(checkpoint.load(paths[0]).config), str(paths[0])).data.root)
    encoders = [features_of(path, index, asked.split) for path in paths]
    shape = Shape(asked.ways, asked.pool, asked.queries)
    sampler = Sampler(index, asked.split, shape, seed=asked.seed, turns=False)
    episodes = 3 if asked.quick else asked.episodes
    print(
        f"{index.name}, split {asked.split}: {asked.ways} classes with {asked.pool} unlabelled samples, {episodes} episodes"
    )
    print("| budget | strategy | accuracy | classes found | less random (by run) |")
    print("|---|---|---|---|---|")
    for budget in asked.budgets:
        measured(encoders, sampler, budget, episodes)


if __name__ == "__main__":
    main()
