"""Claim: what is learned tells faces apart better than what needs no training: pixels, and whitened principal components.

Both are compared by the cosine, after the mean of the training split's images is taken away; components come from these images.
Frozen test episodes are judged, and of data that were packed with pairs the pair protocol.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.index import Index
from pipeline.data.pairs import are_in
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.judging import ranged, score
from pipeline.models.heads import directions
from pipeline.pair_protocol import cosine, judge

COMPONENTS = (50, 100, 200)
EPISODES = 600


class Images:
    """All images of a data set as rows of numbers, and the mean of the training split."""

    def __init__(self, index: Index):
        shards = Shards(index)
        self.pixels = torch.from_numpy(np.stack([shards.image(row).ravel() for row in range(len(index))])).float() / 255
        rows = np.concatenate([index.postings(int(number)) for number in index.splits["train"]])
        self.training = self.pixels[torch.from_numpy(rows.astype(np.int64))]
        self.mean = self.training.mean(0)

    def features(self) -> dict[str, Tensor]:
        """What is compared, by name: (samples, dim) each."""
        centred = self.pixels - self.mean
        found = {"pixels": centred}
        known = torch.linalg.svd(self.training - self.mean, full_matrices=False)
        for count in COMPONENTS:
            if count < len(self.training):
                found[f"{count} components, whitened"] = centred @ known.Vh[:count].T / known.S[:count]
        return found


def accuracy(index: Index, features: Tensor, shape: Shape, episodes: int) -> str:
    """Accuracy of the nearest class by cosine on the frozen test episodes, with its interval."""
    sampler = Sampler(index, "test", shape, seed=0, turns=False)
    values = []
    for number in range(episodes):
        drawn = sampler.draw(0, number)
        support, query = (
            directions(features[torch.from_numpy(rows)])
            for rows in (np.concatenate(drawn.support), np.concatenate(drawn.query))
        )
        means = directions(support.reshape(shape.ways, shape.shots, -1).mean(1))
        said = (query @ means.T).argmax(1)
        values.append((said == torch.arange(shape.ways).repeat_interleave(shape.queries)).double().mean().item())
    return str(score(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a packed data set")
    parser.add_argument("--ways", type=int, default=20)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few episodes, to see that it works")
    asked = parser.parse_args()
    episodes = 5 if asked.quick else EPISODES
    index = Index.open(asked.data)
    shape = Shape(asked.ways, asked.shots, asked.queries)
    print(f"{asked.data}: {shape.ways}-way {shape.shots}-shot, {shape.queries} queries, {episodes} episodes; and pairs")
    for name, features in Images(index).features().items():
        print(f"{name:<28}{accuracy(index, features, shape, episodes)}", flush=True)
        if are_in(index):
            told = judge(index, lambda rows, f=features: f[torch.from_numpy(rows)], cosine, validation="val").as_json()
            print(f"{'':<28}" + ", ".join(f"{key} {ranged(key, told[key])}" for key in ("accuracy", "auc", "eer")))


if __name__ == "__main__":
    main()
