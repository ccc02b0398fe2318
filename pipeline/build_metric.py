"""From a config to learners that compare: prototypes, cosines, attention, a network of relation."""

from __future__ import annotations

from typing import assert_never

from pipeline.build_encoder import Encoder, gives_maps
from pipeline.errors import InputError
from pipeline.learners.dense import DensePrototypeLearner
from pipeline.learners.detector import PrototypeDetector
from pipeline.learners.learner import Learner
from pipeline.learners.metric import (
    ContextualMatchingLearner,
    CosineLearner,
    MatchingLearner,
    PrototypeLearner,
    RelationLearner,
)
from pipeline.learners.wccn import WccnLearner
from pipeline.models.conv4 import Conv4
from pipeline.models.features import Features
from pipeline.models.full_context import FullContext
from pipeline.models.network import Network
from pipeline.models.relation import Relation
from pipeline.schema.learner import CosineLearnerConfig, MatchingConfig, PrototypeConfig, RelationConfig, WccnConfig
from pipeline.schema.model import Conv4Config
from pipeline.schema.run import RunConfig
from pipeline.schema.task import CrossEntropyConfig, DetectionConfig, SegmentationConfig
from pipeline.tasks.task import Task

MetricConfig = PrototypeConfig | CosineLearnerConfig | WccnConfig | MatchingConfig | RelationConfig


def metric_learner(config: RunConfig, chosen: MetricConfig, model: Network, encoder: Encoder, task: Task) -> Learner:
    """The learner that compares what this model, an encoder without a head, says of queries with what it says of the support.

    Raises:
        InputError: learner, model and task do not fit each other.
    """
    match chosen:
        case PrototypeConfig(align=align, threshold=threshold):
            if isinstance(config.task, SegmentationConfig):
                return DensePrototypeLearner(model, task, align=align, threshold=threshold)
            for key, value in (("align", align or None), ("threshold", threshold)):
                if value is not None:
                    raise InputError(f"learner.{key} = {value:g} is for task.kind = segmentation; leave it out")
            if isinstance(config.task, DetectionConfig):
                return PrototypeDetector(model, task, features=encoder.features)
            return PrototypeLearner(model, task)
        case CosineLearnerConfig(scale=scale, offset=offset):
            return CosineLearner(model, task, scale=scale, offset=offset)
        case WccnConfig(scale=scale, shrink=shrink):
            return WccnLearner(model, task, features=encoder.features, scale=scale, shrink=shrink)
        case MatchingConfig(reads=0):
            return MatchingLearner(model, task)
        case MatchingConfig(reads=reads):
            context = FullContext(encoder.features, steps=reads)
            return ContextualMatchingLearner(model, task, context)
        case RelationConfig(loss=loss):
            if not (isinstance(encoder, Conv4 | Features) and gives_maps(encoder)):
                raise InputError(
                    "learner.kind = relation compares feature maps; set model.kind = conv4 and model.features = map"
                )
            asked = config.task
            if loss == "mse" and not isinstance(asked, DetectionConfig) and asked.loss != CrossEntropyConfig():
                raise InputError(
                    f"task.loss.kind = {asked.loss.kind} is not asked where learner.loss = mse; set learner.loss = task"
                )
            norm = config.model.norm if isinstance(config.model, Conv4Config) else "batch"
            relation = Relation(width=encoder.channels, side=encoder.side, norm=norm)
            return RelationLearner(model, task, relation, loss=loss)
        case _ as never:
            assert_never(never)
