"""Claim: with meta-gradients through a few support samples per class (LITE), memory hardly grows with the support.

Prototypes on a conv4-64 with group norm, 28 × 28 pixels, 5 ways, 5 queries per class, one episode, forward and backward: the most
that tensors take at one time (not the process), beyond weights and images, and CPU seconds.
"""

from __future__ import annotations

import argparse
import time

import torch
from contenders import Setting, episodes_of

from pipeline.engine import Engine, Plan
from pipeline.learners.metric import PrototypeLearner
from pipeline.memory import peak_bytes
from pipeline.models.conv4 import Conv4
from pipeline.models.network import Network
from pipeline.tasks.classification import Classification

QUERIES = 5


def learner(width: int) -> PrototypeLearner:
    """Equal initial values each time."""
    torch.manual_seed(0)
    encoder = Conv4(channels=1, width=width, size=28, downsample="max_pool", features="flatten", norm="group")
    return PrototypeLearner(Network(encoder, torch.nn.Identity()), Classification())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrow network, to see that it works")
    width, many = (4, 6) if parser.parse_args().quick else (64, 50)
    torch.set_num_threads(1)
    print(f"conv4-{width}, group norm, 5 ways, {QUERIES} queries per class")
    print(f"{'shots':>6}{'gradients through':>19}{'peak MiB':>10}{'CPU s':>8}")
    peaks: dict[tuple[int, int], float] = {}
    for shots in (5, many):
        (episode,) = episodes_of(Setting("", "max_pool", QUERIES, 1, 0.0, shots=shots, width=width), torch.float32)
        for backward in (shots, 2, 1):
            made = learner(width)
            made.spare(backward)
            engine = Engine(made, Plan("loop", 1))

            def work(engine: Engine = engine, episode=episode) -> None:
                engine([episode]).loss.backward()

            peaks[shots, backward] = peak_bytes(work) / 2**20
            began = time.process_time()
            work()
            print(f"{shots:6}{backward:19}{peaks[shots, backward]:10.1f}{time.process_time() - began:8.2f}", flush=True)
    print(f"through 1 of {many} ÷ through all: {peaks[many, 1] / peaks[many, many]:.2f}")
    print(f"through 1 of {many} ÷ through 1 of 5: {peaks[many, 1] / peaks[5, 1]:.2f}")


if __name__ == "__main__":
    main()
