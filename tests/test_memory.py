"""What is counted, and what it is counted for: memory that does not grow with the number of inner steps."""

import torch
from small import episode, gradient_learner

from pipeline.learners.estimators import Unrolled
from pipeline.memory import peak_bytes


def test_peak_memory_counts_what_lives_at_one_time():
    def work() -> None:
        kept = torch.zeros(1 << 18)
        for _ in range(4):
            torch.zeros(1 << 18)
        del kept

    assert 2 << 20 <= peak_bytes(work) < 3 << 20


def test_walked_back_steps_take_a_fraction_of_the_memory():
    """Ten times the steps, four times the memory at most where weights weigh as much as activations; unrolled ten times."""
    taken = {}
    for steps in (5, 50):
        for recompute in (False, True):
            learner = gradient_learner(estimate=Unrolled(steps, recompute=recompute), steps=steps)
            taken[steps, recompute] = peak_bytes(lambda it=learner: it.outcome(episode(0)).loss.backward())
    assert taken[50, False] > 6 * taken[5, False]
    assert taken[50, True] < 3 * taken[5, True]
