"""From a config to learners whose networks write weights: CNAPs, Meta Networks, LEO."""

from __future__ import annotations

from typing import assert_never

from pipeline.build_encoder import Encoder, modality_channels, told
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.amortised import FilmLearner, MetaNetLearner
from pipeline.learners.learner import Learner
from pipeline.learners.leo import LeoLearner, Terms
from pipeline.models.conv4 import Conv4
from pipeline.models.network import Network
from pipeline.schema.learner import FilmConfig, LeoConfig, MetaNetConfig
from pipeline.schema.run import RunConfig
from pipeline.tasks.task import Task

AmortisedConfig = FilmConfig | MetaNetConfig | LeoConfig


def amortised_learner(
    config: RunConfig, chosen: AmortisedConfig, index: Index, model: Network, encoder: Encoder, task: Task
) -> Learner:
    """The learner that writes a part of the weights for each episode, around this model: an encoder without a head.

    Raises:
        InputError: learner, model and task do not fit each other.
    """
    match chosen:
        case FilmConfig(hidden=hidden):
            side, _, _ = index.shape(0)
            # Group norm: the context of a support is the same in training and in both modes.
            set_encoder = Conv4(
                channels=sum(modality_channels(config, index).values()) + len(told(config)),
                width=hidden,
                size=config.data.size or side,
                downsample="stride",
                features="mean",
                norm="group",
            )
            sizes = {"context": set_encoder.features, "features": encoder.features, "hidden": hidden}
            return FilmLearner(model, task, set_encoder, **sizes)
        case MetaNetConfig(representation=representation, hidden=hidden):
            return MetaNetLearner(
                model,
                task,
                features=encoder.features,
                ways=config.data.ways,
                representation=representation,
                hidden=hidden,
            )
        case LeoConfig():
            if chosen.freeze and config.start is None:
                raise InputError(
                    "learner.freeze = true would keep an encoder of random weights; set start, or learner.freeze = false"
                )
            return LeoLearner(
                model,
                task,
                features=encoder.features,
                latent=chosen.latent,
                steps=chosen.steps,
                tuning_steps=chosen.tuning_steps,
                lr=chosen.lr,
                tuning_lr=chosen.tuning_lr,
                terms=Terms(chosen.divergence, chosen.penalty, chosen.orthogonality),
                is_frozen=chosen.freeze,
            )
        case _ as never:
            assert_never(never)
