"""Claim: where the encoder stays as it is, features that were embedded once make training and evaluation many times faster.

R2D2's solver on a conv4-64 that is not trained, 5-way 1-shot, 15 queries, drawn glyphs of 28 pixels: episodes are read from
packed images and embedded each time, without a backward through the encoder, or read as features. One thread, the two in turns;
both must give the same predictions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from loading import PIXELS, glyph_folder
from safetensors.torch import save_file

from pipeline import build, prepare
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.embed import embed
from pipeline.engine import Engine, Plan
from pipeline.episode import Episode
from pipeline.learners.learner import Learner, Mode
from pipeline.schema.run import RunConfig

VALUES, CONFIG = "encoder.safetensors", "run.yaml"


def tree(root: Path, runs: Path, model: dict[str, Any]) -> dict[str, Any]:
    """The config of a run of ridge regression."""
    return {
        "name": "embedding",
        "runs": str(runs),
        "data": {"root": str(root), "ways": 5, "shots": 1, "queries": 15},
        "model": model,
        "learner": {"kind": "ridge"},
        "meta": {"steps": 1},
    }


class Case:
    """A learner and what it reads."""

    def __init__(self, config: RunConfig, index: Index, learner: Learner):
        self.sampler, self.reader = build.sampler(config, index, "train"), build.reader(config, index)
        self.learner, self.engine = learner, Engine(learner, Plan("loop", 1))

    def read(self, number: int) -> Episode:
        return self.reader.episode(self.sampler.draw(0, number))

    def evaluate(self, number: int) -> torch.Tensor:
        support, query, ways, _ = self.read(number)
        return self.learner.adapt(support, ways, mode=Mode.INDUCTIVE)(query.inputs)

    def train(self, number: int) -> None:
        self.engine([self.read(number)]).loss.backward()


def rate(work, episodes: int) -> float:
    """Episodes per second."""
    began = time.perf_counter()
    for number in range(episodes):
        work(number)
    return episodes / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=40, help="per repeat")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    arguments = parser.parse_args()
    quick = arguments.quick
    repeats, episodes = (1, 2) if quick else (arguments.repeats, arguments.episodes)
    model = {"kind": "conv4", "width": 4 if quick else 64}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        place = Path(folder)
        source = glyph_folder(place / "glyphs", *((5, 16) if quick else (100, 20)))
        images = prepare.pack(str(source), place / "images", layout="folder", size=PIXELS, rule="train=1")
        asked = tree(images.root, place, model)
        (place / CONFIG).write_text(yaml.safe_dump(asked))
        config = parse(asked, "embedding")
        learner = build.learner(config, images)
        save_file({name: value.contiguous() for name, value in learner.state_dict().items()}, place / VALUES)
        began = time.perf_counter()
        features = embed(place / VALUES, place / "features", config=place / CONFIG)
        embedding_s = time.perf_counter() - began
        learner.model.encoder.requires_grad_(False)
        other = parse(tree(features.root, place, {"kind": "features"}), "embedding")
        cases = {
            "images": Case(config, images, learner),
            "features": Case(other, features, build.learner(other, features)),
        }
        predictions = [case.evaluate(0) for case in cases.values()]
        assert torch.allclose(*predictions, rtol=1e-3, atol=1e-4), "features are not those of the images"
        print(f"conv4-{model['width']}, {len(images):,} images embedded in {embedding_s:.1f} s; {repeats} repeats")
        for doing in ("evaluate", "train"):
            rates: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(repeats + 1):
                for name, case in cases.items():
                    rates[name].append(rate(getattr(case, doing), episodes))
            # The first turn warms up.
            ratios = [a / b for a, b in zip(rates["features"][1:], rates["images"][1:], strict=True)]
            told = ", ".join(f"{name} {statistics.median(own[1:]):.1f}" for name, own in rates.items())
            print(f"{doing}: episodes/s: {told}; features are {statistics.median(ratios):.1f} × as fast", flush=True)


if __name__ == "__main__":
    main()
