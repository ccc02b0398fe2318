"""The outer optimizer is the one asked for, and its rate a function of the meta-step alone."""

import math
from functools import partial

import pytest
import torch
from small import small_config

from pipeline import build_outer


@pytest.fixture
def config(glyphs_root, tmp_path):
    return partial(small_config, glyphs_root, tmp_path)


def rates(config, schedule, steps=100) -> list[float]:
    optimizer = {"kind": "adam", "lr": 0.2}
    made = config(meta={"steps": steps, "schedule": schedule, "optimizer": optimizer})
    return [build_outer.rate(made, step) for step in range(steps + 1)]


def test_a_constant_rate_is_constant(config):
    assert set(rates(config, {"kind": "constant"})) == {0.2}


def test_a_cosine_falls_from_the_rate_to_its_floor(config):
    found = rates(config, {"kind": "cosine", "floor": 0.05})
    assert found[0] == 0.2 and found[-1] == pytest.approx(0.2 * 0.05)
    assert found == sorted(found, reverse=True)
    assert found[50] == pytest.approx(0.2 * (1 + 0.05) / 2)
    assert found[25] == pytest.approx(0.2 * (0.05 + 0.95 * (1 + math.cos(math.pi / 4)) / 2))


def test_steps_cut_the_rate_by_a_factor(config):
    found = rates(config, {"kind": "step", "every": 30, "factor": 0.5})
    assert found[:30] == [0.2] * 30 and found[30:60] == [0.1] * 30 and found[90] == pytest.approx(0.025)


@pytest.mark.parametrize(("optimizer", "kind", "options"), [
    ({"kind": "adam", "lr": 0.01, "weight_decay": 0.1}, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    ({"kind": "sgd", "lr": 0.5, "momentum": 0.8}, torch.optim.SGD, {"lr": 0.5, "momentum": 0.8, "weight_decay": 0}),
])  # fmt: skip
def test_the_optimizer_is_the_one_asked_for(config, optimizer, kind, options):
    made = build_outer.optimizer(config(meta={"optimizer": optimizer}), [torch.nn.Parameter(torch.ones(2))])
    assert type(made) is kind and made.defaults.items() >= options.items()
