"""Claim: walking the inner loop back one step at a time keeps memory nearly the same from 5 to 50 inner steps, at little cost.

Second-order MAML on conv4-64, 28 × 28 pixels, 5-way 1-shot, one episode in a loop. Memory is the most that tensors take at one
time (not the process), beyond weights and images; time is per inner step, paired with plain unrolling in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
from contenders import Setting, episodes_of, maml

from pipeline.engine import Engine, Plan
from pipeline.episode import Episode
from pipeline.memory import peak_bytes

FEW, MANY = 5, 50
MEMORY_BOUND, TIME_BOUND = 2.0, 1.6


def work(engine: Engine, episode: Episode) -> float:
    """Seconds of a forward and backward."""
    engine.zero_grad(set_to_none=True)
    began = time.perf_counter()
    engine([episode]).loss.backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a narrow network and few steps, to see that it works")
    arguments = parser.parse_args()
    width, many, repeats = (4, MANY // 5, 1) if arguments.quick else (64, MANY, arguments.repeats)
    for model in ("stride", "max_pool"):
        setting = Setting(model, model, 1, 1, 0.01, width=width)
        (episode,) = episodes_of(setting, torch.float32)
        cases = [(steps, recompute) for steps in (FEW, many) for recompute in (False, True)]
        learners = {(n, r): maml(setting._replace(inner=n), recompute=r) for n, r in cases}
        engines = {key: Engine(learner, Plan("loop", 1)) for key, learner in learners.items()}
        mib = {key: peak_bytes(partial(work, engine, episode)) / 2**20 for key, engine in engines.items()}
        seconds = {key: [] for key in engines}
        for _ in range(repeats + 1):
            for key, engine in engines.items():
                seconds[key].append(work(engine, episode))
        print(f"\nconv4-{width}, {model}; {torch.get_num_threads()} threads, {repeats} repeats")
        print(f"{'inner steps':>12}{'recomputed':>12}{'peak MiB':>10}{'ms a step':>11}")
        for (steps, recompute), column in seconds.items():
            each = 1000 * statistics.median(column[1:]) / steps
            print(f"{steps:12}{'yes' if recompute else 'no':>12}{mib[steps, recompute]:10.1f}{each:11.2f}")
        ratios = [a / b for a, b in zip(seconds[many, True][1:], seconds[many, False][1:], strict=True)]
        print(
            f"memory of {many} recomputed steps ÷ that of {FEW}: {mib[many, True] / mib[FEW, True]:.2f} (bound {MEMORY_BOUND})"
        )
        print(
            f"time of {many} recomputed steps ÷ unrolled: {statistics.median(ratios):.2f} (bound {TIME_BOUND})",
            flush=True,
        )


if __name__ == "__main__":
    main()
