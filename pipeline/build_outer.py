"""From a config to the outer loop's optimizer and its rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from pipeline.schema.run import AdamConfig, ConstantConfig, CosineConfig, MomentumConfig, RunConfig, StepConfig


def optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The outer optimizer."""
    match config.meta.optimizer:
        case AdamConfig(lr=lr, weight_decay=decay):
            return Adam(parameters, lr=lr, weight_decay=decay)
        case MomentumConfig(lr=lr, momentum=momentum, weight_decay=decay):
            return SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay)
        case _ as never:
            assert_never(never)


def rate(config: RunConfig, step: int) -> float:
    """The outer learning rate of a meta-step: a pure function, so that a resume has nothing to restore."""
    base = config.meta.optimizer.lr
    match config.meta.schedule:
        case ConstantConfig():
            return base
        case CosineConfig(floor=floor):
            return base * (floor + (1 - floor) * (1 + math.cos(math.pi * step / config.meta.steps)) / 2)
        case StepConfig(every=every, factor=factor):
            return base * factor ** (step // every)
        case _ as never:
            assert_never(never)
